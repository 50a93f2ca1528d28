"""HookedMaira2 against the plain model: reading, writing, stopping, logits and losses."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from sae_lens_maira.data.source import PhantomConfig
from sae_lens_maira.data.study import IMAGE_KINDS
from sae_lens_maira.errors import RowError
from sae_lens_maira.hooked import HookedMaira2
from sae_lens_maira.maira2 import Maira2ForConditionalGeneration
from sae_lens_maira.rows.policy import TokenPolicy
from sae_lens_maira.sources import open_source
from tests.plain_maira2 import (
    CHECKPOINTS,
    REFERENCE_CHECKPOINT,
    PlainBatch,
    assert_rows_equal,
    count_calls,
    edited_at,
    phantom_studies,
    plain_activations,
    raw_hook,
    relative_error,
)

POINTS = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")
NAMES = [*(f"blocks.{layer}.{point}" for layer in (0, 2, 4) for point in POINTS), "hook_image_embeds"]


@pytest.fixture(scope="module")
def studies():
    return phantom_studies()


@pytest.fixture(scope="module", params=CHECKPOINTS, ids=lambda path: path.name)
def checkpoint(request):
    return request.param


@pytest.fixture(scope="module")
def plain(checkpoint):
    return Maira2ForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def hooked(checkpoint, studies):
    return HookedMaira2.from_pretrained(checkpoint, studies, dtype=torch.float32)


@pytest.fixture(scope="module")
def batch(hooked, studies):
    return PlainBatch.of(hooked.processor, studies)


@pytest.fixture(scope="module")
def tokens(hooked, studies):
    return hooked.reader.rows(range(len(studies)), None)


@pytest.fixture(scope="module")
def plain_cache(plain, batch):
    with torch.no_grad():
        return {name: plain_activations(plain, batch.inputs, name) for name in NAMES}


@pytest.fixture(scope="module")
def plain_logits(plain, batch):
    with torch.no_grad():
        return plain(**batch.inputs).logits


def plain_losses(logits, batch):
    """Computed by hand: minus the log probability of each kept text token, at the position before it; 0 for images."""
    ids, width = batch.inputs["input_ids"], max(map(len, batch.kept))
    losses = torch.zeros(len(ids), width - 1)
    counts = torch.zeros(len(ids), width - 1, dtype=torch.bool)
    kinds = batch.inputs["token_kinds"]
    log_probabilities = logits.log_softmax(-1)
    for row, positions in enumerate(batch.kept):
        for column, position in enumerate(positions[1:]):
            if kinds[row, position] not in IMAGE_KINDS:
                losses[row, column] = -log_probabilities[row, position - 1, ids[row, position]]
                counts[row, column] = True
    return losses, counts


# Reading.


@torch.no_grad()
def test_all_hook_points_read_in_one_pass_are_what_raw_hooks_see(hooked, tokens, batch, plain_cache):
    _, cache = hooked.run_with_cache(tokens, names_filter=NAMES)
    assert set(cache) == set(NAMES)
    for name in NAMES[:-1]:
        assert_rows_equal(cache[name], plain_cache[name], batch.kept)
    assert torch.equal(cache["hook_image_embeds"], plain_cache["hook_image_embeds"])
    assert len(cache["hook_image_embeds"]) == 4 + 2 + 2  # frontal, lateral and prior images


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_hook_point_read_alone_is_what_a_raw_hook_sees(hooked, tokens, batch, plain_cache, name):
    stop = 0 if name == "hook_image_embeds" else int(name.split(".")[1]) + 1
    _, cache = hooked.run_with_cache(tokens, names_filter=[name], stop_at_layer=stop, prepend_bos=False)
    assert list(cache) == [name]
    if name == "hook_image_embeds":
        assert torch.equal(cache[name], plain_cache[name])
    else:
        assert_rows_equal(cache[name], plain_cache[name], batch.kept)


@torch.no_grad()
def test_a_study_has_the_same_activations_alone_and_in_a_padded_batch(hooked, tokens, plain, studies):
    names = NAMES[:-1]
    together = hooked.run_with_cache(tokens, names_filter=names)[1]
    for row, study in enumerate(studies):
        alone = PlainBatch.of(hooked.processor, [study])
        (positions,) = alone.kept
        for name in names:
            expected = plain_activations(plain, alone.inputs, name)[0, positions]
            assert relative_error(together[name][row, : len(positions)], expected) <= 1e-5


@torch.no_grad()
def test_the_start_of_a_row_gives_the_start_of_its_activations(hooked, tokens, batch, plain_cache):
    name = "blocks.2.hook_resid_post"
    cache = hooked.run_with_cache(tokens[:, :5], names_filter=name)[1]
    assert_rows_equal(cache[name], plain_cache[name], [positions[:5] for positions in batch.kept])
    assert hooked(tokens[:, :1], stop_at_layer=1).shape == (4, 1, hooked.cfg.d_model)


@torch.no_grad()
def test_rows_may_come_in_any_order_and_more_than_once(hooked, tokens, batch, plain_cache):
    name = "blocks.2.hook_resid_post"
    order = [3, 0, 3, 1]
    values = hooked.run_with_cache(tokens[order], names_filter=name)[1][name]
    for value, row in zip(values, order, strict=True):
        positions = batch.kept[row]
        assert relative_error(value[: len(positions)], plain_cache[name][row, positions]) <= 1e-5


# Stopping.


@pytest.mark.parametrize("stop", [0, 3, 5, -1, -5])
@torch.no_grad()
def test_the_model_stops_at_the_layer_asked_for(hooked, tokens, batch, plain_cache, plain, stop):
    n_run = stop if stop >= 0 else 5 + stop
    attentions = [layer.self_attn for layer in hooked.maira2.model.language_model.layers]
    with count_calls(*attentions, hooked.maira2.lm_head, hooked.maira2.model.language_model.norm) as counts:
        residual = hooked(tokens, stop_at_layer=stop)
    assert counts == [1] * n_run + [0] * (5 - n_run) + [0, 0]
    name = "blocks.0.hook_resid_pre" if n_run == 0 else f"blocks.{n_run - 1}.hook_resid_post"
    assert_rows_equal(residual, plain_activations(plain, batch.inputs, name), batch.kept)


@pytest.mark.parametrize("stop", [6, -6])
def test_a_layer_out_of_range_is_refused(hooked, tokens, stop):
    with pytest.raises(ValueError, match=f"^stop_at_layer {stop} is out of range for a model of 5 layers.$"):
        hooked(tokens, stop_at_layer=stop)


@torch.no_grad()
def test_what_no_hook_asks_for_is_not_run(hooked, tokens):
    layers = hooked.maira2.model.language_model.layers
    modules = [*(layer.self_attn for layer in layers), hooked.maira2.lm_head]
    nothing = {name: lambda value, hook: None for name in NAMES}
    for names, n_run in ((["blocks.2.hook_attn_out"], 3), (["hook_image_embeds"], 0), ([NAMES[0], NAMES[11]], 5)):
        with count_calls(*modules) as counts:
            hooked.run_with_hooks(tokens, return_type=None, fwd_hooks=[(name, nothing[name]) for name in names])
        assert counts == [1] * n_run + [0] * (5 - n_run) + [0]


@torch.no_grad()
def test_logits_are_computed_only_where_they_are_read(hooked, tokens):
    seen = []
    head = hooked.maira2.lm_head
    handle = head.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    try:
        assert hooked(tokens, return_type=None) is None
        hooked.run_with_cache(tokens, names_filter=["blocks.0.hook_mlp_out"], stop_at_layer=1)
        assert seen == []
        hooked(tokens, return_type="both")
        assert seen == [(*tokens.shape, hooked.cfg.d_model)]
    finally:
        handle.remove()


# Logits and losses.


@torch.no_grad()
def test_logits_on_rows_are_those_that_predict_the_rows_tokens(hooked, tokens, batch, plain_logits):
    logits = hooked(tokens)
    assert logits.shape == (*tokens.shape, hooked.cfg.d_vocab)
    for row, positions in enumerate(batch.kept):
        for column, following in enumerate(positions[1:]):
            assert relative_error(logits[row, column], plain_logits[row, following - 1]) <= 1e-5
        assert relative_error(logits[row, len(positions) - 1], plain_logits[row, positions[-1]]) <= 1e-5


@torch.no_grad()
def test_losses_on_rows_are_the_plain_models_and_images_and_padding_have_none(hooked, tokens, batch, plain_logits):
    expected, counted = plain_losses(plain_logits, batch)
    logits, losses = hooked(tokens, return_type="both", loss_per_token=True)
    assert torch.allclose(losses, expected, rtol=1e-5, atol=1e-5)
    assert not losses[~counted].any()
    mean = sum(expected[counted].tolist()) / int(counted.sum())
    assert hooked(tokens, return_type="loss").item() == pytest.approx(mean, rel=1e-5)
    assert torch.equal(hooked(tokens), logits)


@torch.no_grad()
def test_the_begin_of_sequence_is_no_target(hooked, plain, batch, studies):
    """No token precedes the first one, so no position predicts it."""
    everything = HookedMaira2(hooked.maira2, hooked.processor, studies[:1], TokenPolicy(template="keep"))
    tokens = everything.reader.rows([0], None)
    assert tokens[0, 1] == everything.processor.tokenizer.bos_token_id
    losses = everything(tokens, return_type="loss", loss_per_token=True)
    alone = PlainBatch.of(hooked.processor, studies[:1]).inputs
    ids, kinds = alone["input_ids"][0], alone["token_kinds"][0]
    log_probabilities = plain(**alone).logits[0, :-1].log_softmax(-1)
    expected = -log_probabilities.gather(1, ids[1:, None])[:, 0][~torch.isin(kinds[1:], torch.tensor(IMAGE_KINDS))]
    assert losses[0, 0] == 0
    assert losses.sum().item() == pytest.approx(expected.sum().item(), rel=1e-4)
    mean = everything(tokens, return_type="loss").item()
    assert mean == pytest.approx(expected.mean().item(), rel=1e-4)


# Writing.


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_written_activation_goes_through_the_model_as_in_a_raw_hook(hooked, plain, tokens, batch, plain_cache, name):
    def edit(value):
        return value * 0.5 + 0.25

    mask = batch.mask() if name != "hook_image_embeds" else torch.ones(8, hooked.processor.n_image_tokens).bool()
    with raw_hook(plain, name, edited_at(mask, edit)):
        expected = plain_activations(plain, batch.inputs, "blocks.4.hook_resid_post")
        logits = plain(**batch.inputs).logits
    hook = [(name, lambda value, hook: edit(value))]
    residual = hooked.run_with_hooks(tokens, stop_at_layer=5, fwd_hooks=hook)
    assert_rows_equal(residual, expected, batch.kept)
    assert not torch.equal(expected, plain_cache["blocks.4.hook_resid_post"])
    losses, counted = plain_losses(logits, batch)
    loss = hooked.run_with_hooks(tokens, return_type="loss", fwd_hooks=hook).item()
    assert loss == pytest.approx(losses[counted].mean().item(), rel=1e-5)


@torch.no_grad()
def test_several_points_are_written_and_read_in_one_pass(hooked, plain, tokens, batch):
    first, second, third = "blocks.1.hook_resid_pre", "blocks.1.hook_attn_out", "blocks.3.hook_mlp_out"
    mask = batch.mask()
    with (
        raw_hook(plain, first, edited_at(mask, lambda value: value + 1)),
        raw_hook(plain, second, edited_at(mask, lambda value: value * 2)),
        raw_hook(plain, third, edited_at(mask, torch.zeros_like)),
    ):
        expected = plain_activations(plain, batch.inputs, "blocks.4.hook_resid_post")
    found = []
    residual = hooked.run_with_hooks(
        tokens,
        stop_at_layer=5,
        fwd_hooks=[
            (first, lambda value, hook: value + 1),
            (second, lambda value, hook: value * 2),
            (third, lambda value, hook: torch.zeros_like(value)),
            ("blocks.4.hook_resid_post", lambda value, hook: found.append(value)),
        ],
    )
    assert_rows_equal(residual, expected, batch.kept)
    assert torch.equal(found[0], residual)


@torch.no_grad()
def test_zero_ablation_and_identity_are_edits_of_the_plain_forward(hooked, plain, tokens, batch, plain_logits):
    name = "blocks.2.hook_resid_post"
    with raw_hook(plain, name, edited_at(batch.mask(), torch.zeros_like)):
        ablated = plain(**batch.inputs).logits
    for edit, expected in ((torch.zeros_like, ablated), (torch.clone, plain_logits)):
        losses, _ = plain_losses(expected, batch)
        hook = [(name, lambda value, hook, edit=edit: edit(value))]
        actual = hooked.run_with_hooks(tokens, return_type="loss", loss_per_token=True, fwd_hooks=hook)
        assert torch.allclose(actual, losses, rtol=1e-5, atol=1e-5)
    assert (ablated - plain_logits)[batch.mask()].abs().max() > 0.01
    identity = hooked.run_with_hooks(tokens, fwd_hooks=[(name, lambda value, hook: value.clone())])
    assert torch.equal(identity, hooked(tokens))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_an_edit_in_place_counts(hooked, tokens, mode):
    name = "blocks.2.hook_resid_post"

    def in_place(value, hook):
        value[:, 1:] = 0.0 if mode is not torch.enable_grad else value[:, 1:].detach() * 0.0

    def returned(value, hook):
        return torch.cat([value[:, :1], torch.zeros_like(value[:, 1:])], dim=1)

    with mode():
        expected = hooked.run_with_hooks(tokens, fwd_hooks=[(name, returned)])
        assert torch.equal(hooked.run_with_hooks(tokens, fwd_hooks=[(name, in_place)]), expected)
        assert not torch.equal(hooked(tokens), expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_hooks_that_return_nothing_change_nothing(hooked, tokens, mode):
    with mode():
        seen = hooked.run_with_hooks(tokens, fwd_hooks=[(name, lambda value, hook: None) for name in NAMES])
        assert torch.equal(seen, hooked(tokens))


def test_hooks_are_gone_after_a_run(hooked, tokens):
    with torch.no_grad():
        before = hooked(tokens)
        hooked.run_with_hooks(tokens, fwd_hooks=[(NAMES[3], lambda value, hook: value * 0)])
        assert torch.equal(hooked(tokens), before)
    assert not any(point.fwd_hooks for point in hooked.hook_dict.values())


# Gradients.


def plain_gradient(plain, batch, name):
    """The gradient of the mean loss with respect to a hook point, at all positions."""
    found = []

    def keep(value):
        value.retain_grad()
        found.append(value)

    with raw_hook(plain, name, keep):
        losses, counted = plain_losses(plain(**batch.inputs).logits, batch)
    (gradient,) = torch.autograd.grad(losses[counted].mean(), found)
    return gradient


@pytest.mark.parametrize("name", ["blocks.0.hook_resid_pre", "blocks.2.hook_attn_out", "blocks.3.hook_resid_post"])
def test_the_gradient_of_what_a_hook_saw_is_the_plain_models(hooked, plain, tokens, batch, name):
    expected = plain_gradient(plain, batch, name)
    seen, backward = [], []
    loss = hooked.run_with_hooks(tokens, return_type="loss", fwd_hooks=[(name, lambda value, hook: seen.append(value))])
    (gradient,) = torch.autograd.grad(loss, seen)
    with hooked.hooks(bwd_hooks=[(name, lambda gradient, hook: backward.append(gradient))]):
        hooked(tokens, return_type="loss").backward()
    hooked.maira2.zero_grad()
    for actual in (gradient, backward[0]):
        for row, positions in enumerate(batch.kept):
            scale = expected.abs().max()
            assert (actual[row, : len(positions)] - expected[row, positions]).abs().max() <= 1e-4 * scale
            assert not actual[row, len(positions) :].any()


def test_a_written_activation_passes_its_gradient_on(hooked, plain, tokens, batch):
    """The gradient of a steering vector is the sum of the plain model's over all positions that it was added to."""
    name = "blocks.2.hook_resid_post"
    steering = torch.zeros(hooked.cfg.d_model, requires_grad=True)
    loss = hooked.run_with_hooks(tokens, return_type="loss", fwd_hooks=[(name, lambda value, hook: value + steering)])
    (gradient,) = torch.autograd.grad(loss, [steering])
    expected = plain_gradient(plain, batch, name)[batch.mask()].sum(0)
    assert relative_error(gradient, expected) <= 1e-4


# Bad input.


def test_a_row_of_another_policy_is_refused(hooked, tokens, studies):
    other = HookedMaira2(hooked.maira2, hooked.processor, studies, TokenPolicy(image_tokens="none"))
    with pytest.raises(
        RowError,
        match=r"^The row of study 'study 0' differs from what this model keeps of it, from position 1 on: it "
        r"was made with another model, token policy or source; make it again with model.rows\(...\).$",
    ):
        other(tokens)


def test_a_row_of_another_source_is_refused(hooked, tokens, studies):
    changed = [replace(studies[0], indication="Fall."), *studies[1:]]
    other = HookedMaira2(hooked.maira2, hooked.processor, changed)
    assert other(tokens[1:], stop_at_layer=0).shape[0] == 3
    with pytest.raises(RowError, match="^The row of study 'study 0' differs .* position "):
        other(tokens)


def test_a_row_of_another_model_is_refused(hooked, tokens):
    """With another vocabulary, the same ids refer to other studies, or to none."""
    with pytest.raises(RowError, match=r"^A row starts with token \d+, which is no study of this model \(it knows 4\)"):
        hooked(tokens + 1000)
    with pytest.raises(RowError, match="^A row starts with token 1, which is no study"):
        hooked(torch.ones(2, 8, dtype=torch.long))


def test_rows_of_a_wrong_rank_are_refused(hooked, tokens):
    with pytest.raises(RowError, match=r"^Rows have shape \(batch, context\), but these have \(\d+,\).$"):
        hooked(tokens[0])


def test_a_study_without_findings_is_refused_by_its_name(hooked, studies):
    silent = replace(studies[1], findings=None, sentences=())
    message = "^Study 'study 1' has no findings; leave it out, or use TokenPolicy\\(text='prompt'\\).$"
    with pytest.raises(RowError, match=message):
        HookedMaira2(hooked.maira2, hooked.processor).to_tokens(silent)
    asking = HookedMaira2(hooked.maira2, hooked.processor, (), TokenPolicy(text="prompt"))
    assert asking.to_tokens(silent).shape[0] == 1


@pytest.mark.parametrize(
    "ask",
    [
        lambda model, tokens, name: model.run_with_cache(tokens, names_filter=[name]),
        lambda model, tokens, name: model.run_with_hooks(tokens, fwd_hooks=[(name, lambda value, hook: None)]),
        lambda model, tokens, name: model.hooks(bwd_hooks=[(name, lambda value, hook: None)]).__enter__(),
    ],
    ids=["run_with_cache", "run_with_hooks", "hooks"],
)
def test_an_unknown_hook_name_names_the_close_ones(hooked, tokens, ask):
    message = (
        "^There is no hook point 'blocks.2.hook_resid_pots' in a model of 5 layers; "
        r"did you mean blocks.2.hook_resid_post or .*\?$"
    )
    with pytest.raises(ValueError, match=message):
        ask(hooked, tokens, "blocks.2.hook_resid_pots")
    assert not any(point.fwd_hooks for point in hooked.hook_dict.values())


def test_a_hook_name_like_no_other_is_told_where_to_look(hooked, tokens):
    with pytest.raises(ValueError, match="^There is no hook point 'xyz' .*; see model.hook_dict.$"):
        hooked.run_with_cache(tokens, names_filter="xyz")


# Studies, dtypes, devices.


def test_rows_of_studies_of_no_source_are_the_same_rows(hooked, tokens, studies):
    empty = HookedMaira2(hooked.maira2, hooked.processor)
    assert torch.equal(empty.to_tokens(studies[:2], context_size=20), tokens[:2, :20])
    assert torch.equal(empty.to_tokens(studies[2:], context_size=20), tokens[2:, :20])
    assert torch.equal(empty(tokens, stop_at_layer=0), hooked(tokens, stop_at_layer=0))


def test_reading_a_study_changes_nothing_that_identifies_the_model(hooked, tokens, studies):
    """It changes neither the model's studies, nor their description, nor cached rows."""
    bound = hooked.with_studies(phantom_source := open_source(PhantomConfig(n_studies=6, seed=3)))
    identity = (len(bound.studies), bound.studies.fingerprint, bound.studies.description)
    rows = [bound.to_tokens(studies[0]) for _ in range(2)]
    assert torch.equal(rows[0], rows[1])
    assert rows[0][0, 0] == bound.row_vocabulary.study_token(6)
    assert bound.to_tokens(studies[1])[0, 0] == bound.row_vocabulary.study_token(7)
    assert (len(bound.studies), bound.studies.fingerprint, bound.studies.description) == identity
    assert bound.studies is phantom_source


def test_binding_other_studies_shares_the_weights_and_leaves_hooks_and_studies_alone(hooked, tokens, studies):
    name = "blocks.2.hook_resid_post"
    other = hooked.with_studies(studies[2:], TokenPolicy(image_tokens="none"))
    assert other.maira2 is hooked.maira2
    assert other.nnsight is hooked.nnsight
    assert (len(other.studies), len(hooked.studies)) == (2, 4)
    assert (other.policy.image_tokens, hooked.policy.image_tokens) == ("none", "last")
    called = []
    with torch.no_grad(), other.hooks(fwd_hooks=[(name, lambda value, hook: called.append(1))]):
        hooked(tokens, stop_at_layer=3)
        assert not called
        other(other.reader.rows([0], None), stop_at_layer=3)
    assert called == [1]
    with pytest.raises(RowError, match=r"which is no study of this model \(it knows 2\)"):
        other(tokens)


def test_a_study_that_was_forgotten_says_so(hooked, studies, monkeypatch):
    monkeypatch.setattr("sae_lens_maira.rows.reader._REMEMBERED_STUDIES", 2)
    bound = hooked.with_studies(())
    first = bound.to_tokens(studies[0])
    bound.to_tokens(studies[1:3])
    with pytest.raises(RowError, match=r"^A row of to_tokens\(...\) is too old: only the last 2 of its studies"):
        bound(first, stop_at_layer=0)
    bound(bound.to_tokens(studies), stop_at_layer=0)  # more than are remembered


def test_a_misspelt_argument_is_an_error(hooked, studies):
    with pytest.raises(TypeError, match="contxt_size"):
        hooked.to_tokens(studies[0], contxt_size=3)


def test_rows_are_read_as_text(hooked, studies):
    texts = hooked.to_str_tokens(studies[1])
    assert texts[0] == "<frontal>"
    assert "".join(texts[1:]).endswith(studies[1].findings)
    assert texts == hooked.to_str_tokens(hooked.to_tokens(studies[1])[0])


@torch.no_grad()
def test_two_threads_read_the_same_as_one(hooked, tokens):
    name = "blocks.2.hook_resid_post"
    expected = hooked.run_with_cache(tokens, names_filter=name)[1][name]
    models = [hooked.with_studies(hooked.studies) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads, torch.no_grad():
        found = list(threads.map(lambda model: model.run_with_cache(tokens, names_filter=name)[1][name], models))
    assert all(torch.equal(value, expected) for value in found)


def test_left_padded_inputs_hold_the_same_tokens_at_the_rows_positions(hooked, tokens):
    inputs = hooked.full_inputs(tokens, padding_side="left")
    ids = inputs.model_inputs["input_ids"]
    assert inputs.model_inputs["attention_mask"][:, -1].all()
    text = (tokens < hooked.cfg.d_vocab) & (inputs.positions >= 0)
    rows = torch.arange(len(ids))[:, None].expand_as(tokens)
    assert torch.equal(ids[rows[text], inputs.positions[text]], tokens[text])
    following = inputs.predicting_positions[:, :-1] + 1
    is_text = text[:, 1:]
    assert torch.equal(ids[rows[:, 1:][is_text], following[is_text]], tokens[:, 1:][is_text])


@torch.no_grad()
def test_a_model_in_bfloat16_gives_bfloat16_activations_bit_for_bit(checkpoint, studies, tokens, batch):
    hooked = HookedMaira2.from_pretrained(checkpoint, studies, dtype=torch.bfloat16)
    plain = Maira2ForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.bfloat16).eval()
    name = "blocks.2.hook_resid_post"
    cache = hooked.run_with_cache(tokens, names_filter=name)[1]
    assert cache[name].dtype == hooked.cfg.dtype == torch.bfloat16
    assert_rows_equal(cache[name], plain_activations(plain, batch.inputs, name), batch.kept)
    # An answer in single precision is cast, and a hook on it counts.
    logits = hooked.run_with_hooks(tokens, fwd_hooks=[(name, lambda value, hook: value.float() * 0)])
    assert logits.dtype == torch.bfloat16
    assert math.isfinite(hooked(tokens, return_type="loss").item())


@torch.no_grad()
def test_a_model_placed_by_a_device_map_runs(checkpoint, hooked, studies, tokens):
    placed = HookedMaira2.from_pretrained(checkpoint, studies, dtype=torch.float32, device_map={"": "cpu"})
    assert placed.cfg.device == torch.device("cpu")
    assert torch.equal(placed(tokens), hooked(tokens))


def test_the_config_and_the_weights_are_the_models(hooked, plain):
    text = plain.config.text_config
    hooked = hooked.with_studies(hooked.studies)  # no other test has asked it for rows of further studies
    cfg = hooked.cfg
    assert (cfg.n_layers, cfg.d_model, cfg.d_vocab) == (5, text.hidden_size, text.vocab_size)
    assert torch.equal(hooked.W_U[:, : text.vocab_size], plain.lm_head.weight.T)
    assert hooked.W_U.shape[1] == text.vocab_size + 3 + 4  # images and studies
    assert not hooked.W_U[:, text.vocab_size :].any()
    assert hooked.W_U is hooked.W_U  # cached: for MAIRA-2 it has a quarter of a gigabyte
    assert torch.equal(hooked.W_E, plain.model.language_model.embed_tokens.weight)
    assert set(hooked.hook_dict) == {f"blocks.{layer}.{point}" for layer in range(5) for point in POINTS} | {
        "hook_image_embeds"
    }
    assert not list(hooked.parameters())  # libraries that iterate over parameters do not find the 7 billion


def test_the_reference_checkpoint_is_among_the_tested_ones():
    assert REFERENCE_CHECKPOINT in CHECKPOINTS
