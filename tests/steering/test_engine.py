"""Rows from one prefill, against the plain model under PyTorch hooks that edits the whole prompt again each time."""

import pytest
import torch

from sae_lens_maira.errors import SteeringError
from sae_lens_maira.hooked import (
    Ablate,
    Add,
    AddDirection,
    Cap,
    Clamp,
    HookedMaira2,
    HookedVisionLanguageModel,
    Scale,
    Where,
)
from sae_lens_maira.hooked.dictionary import Dictionary
from sae_lens_maira.steering.attention import KeysValues, SharedPrefixCache, shared_prefix_attention
from sae_lens_maira.steering.continuation import Row
from sae_lens_maira.steering.engine import SteeringEngine
from sae_lens_maira.steering.reports import write_reports
from tests.llava_adapter import tiny_llava
from tests.plain_maira2 import REFERENCE_CHECKPOINT, prompt_of, raw_hook, relative_error
from tests.steered_sae import HOOK, edited_plainly, make_dictionary

REPORT = Where(include=("last_prompt_token", "report"))
IMAGES = Where(include=("images",))
LATE = Where(include=("indication", "report"), window=(1, 3))
TOKENS = [416, 864, 675, 334]
BIG = (Add(3, 3.0), Ablate(4))


def rows_for(d_model):
    vector = torch.randn(d_model, generator=torch.Generator().manual_seed(2))
    return [
        Row(),
        Row((Add(3, 2.0),)),
        Row((Clamp(5, 1.5), Scale(7, 3.0)), REPORT),
        Row((Ablate(2), Cap(9, 0.1), Add(1, -2.0)), IMAGES),
        Row((AddDirection(vector, 1.0, HOOK),), LATE),
        Row((AddDirection(vector, 2.0, "blocks.0.hook_resid_pre"), Add(8, 1.0)), LATE),
        Row((AddDirection(vector, 0.5, "blocks.3.hook_mlp_out"),)),
        Row((AddDirection(vector, 0.5, "blocks.1.hook_attn_out"), Ablate(6))),
        Row((AddDirection(vector, 0.5, "blocks.4.hook_resid_post"),), REPORT),
    ]


def plain_logits(model, study, row, sae, tokens):
    """Logits after the prompt and after each token: one full pass of the plain model, edited by raw hooks."""
    inputs = dict(model.processor(prompt_of(study, with_findings=False)))
    kinds = inputs.pop("token_kinds")[0].numpy()
    n_prompt = len(kinds)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([tokens])], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    in_report = [row.where.edits_report_token(number) for number in range(len(tokens))]
    mask = torch.tensor([*row.where.mask(kinds).tolist(), *in_report])[None, :, None]
    hooks = {}
    for edit in row.edits:
        hooks.setdefault(edit.hook or HOOK, []).append(edit)

    def run(names):
        if not names:
            with torch.no_grad():
                return model.maira2(**inputs, use_cache=False).logits[0, n_prompt - 1 :]
        name, own = names[0], tuple(hooks[names[0]])

        def edit(value):
            return torch.where(mask, edited_plainly(value[0], own, sae)[None], value)

        with raw_hook(model.maira2, name, edit):
            return run(names[1:])

    return run(list(hooks))


@torch.no_grad()
def test_every_row_is_the_plain_model_under_its_own_edits(engine, model, studies, dictionary):
    study = studies[0]
    rows = rows_for(model.cfg.d_model)
    state = engine.start(engine.prefill(study), rows)
    first = state.logits.clone()
    after = engine.feed(state, torch.tensor([TOKENS] * len(rows)))
    for index, row in enumerate(rows):
        expected = plain_logits(model, study, row, dictionary.sae, TOKENS)
        assert relative_error(first[index], expected[0]) < 2e-4, row
        assert relative_error(after[index], expected[1:]) < 2e-4, row
    assert state.n_asked.tolist() == state.n_edited.tolist()


@torch.no_grad()
def test_positions_are_counted_against_the_where_clause(engine, studies):
    prefill = engine.prefill(studies[3])
    n_prompt, n_images = len(prefill.kinds), 3 * 64
    rows = [Row(), Row((Add(3, 1.0),)), Row((Add(3, 1.0),), IMAGES), Row((Add(3, 1.0),), REPORT)]
    state = engine.start(prefill, rows)
    for token in TOKENS:
        engine.advance(state, torch.tensor([token] * len(rows)))
    assert state.n_edited.tolist() == [0, n_prompt + 4, n_images, 5]
    assert state.n_asked.tolist() == state.n_edited.tolist()


@torch.no_grad()
def test_reused_prefixes_give_what_a_whole_new_pass_gives(engine, model, studies):
    """Editing from a late position on, or in a late layer, changes only what is computed, not what comes out."""
    late = Row((AddDirection(torch.ones(model.cfg.d_model), 0.5, "blocks.3.hook_resid_post"),), REPORT)
    everywhere = Row((AddDirection(torch.ones(model.cfg.d_model), 1e-30, "blocks.0.hook_resid_pre"),))
    prefill = engine.prefill(studies[0])
    alone, together = engine.start(prefill, [late]), engine.start(prefill, [late, everywhere])
    assert alone.cache.shared[0].keys.shape[2] == len(prefill.kinds)
    assert alone.cache.shared[4].keys.shape[2] == len(prefill.kinds) - 1
    assert together.cache.shared[0].keys.shape[2] == 0
    tokens = torch.tensor([TOKENS])
    assert relative_error(engine.feed(alone, tokens)[0], engine.feed(together, tokens.expand(2, -1))[0]) < 1e-5


@torch.no_grad()
def test_a_dose_of_zero_changes_no_bit(engine, studies):
    prefill = engine.prefill(studies[0])
    zero, none = [Row((Add(3, 0.0),))] * 2, [Row((Scale(3, 1.0),))] * 2
    results = [engine.feed(engine.start(prefill, rows), torch.tensor([TOKENS] * 2)) for rows in (zero, none)]
    assert torch.equal(*results)
    unsteered = engine.feed(engine.start(prefill, [Row()] * 2), torch.tensor([TOKENS] * 2))
    assert relative_error(results[0], unsteered) < 1e-5


@torch.no_grad()
def test_the_prefill_is_not_changed_by_rows(engine, studies):
    prefill = engine.prefill(studies[0])
    before = [(layer.keys.clone(), layer.values.clone()) for layer in prefill.layers]
    engine.feed(engine.start(prefill, [Row(BIG)] * 3), torch.tensor([TOKENS] * 3))
    for layer, (keys, values) in zip(prefill.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)


@torch.no_grad()
def test_selected_rows_go_on_as_they_would_have(engine, model, studies):
    rows = rows_for(model.cfg.d_model)
    prefill = engine.prefill(studies[0])
    whole, part = engine.start(prefill, rows), engine.start(prefill, rows)
    for state in (whole, part):
        engine.advance(state, torch.full((len(rows),), TOKENS[0]))
    chosen = [5, 2, 2, 7]
    part.select(torch.tensor(chosen))
    engine.advance(whole, torch.full((len(rows),), TOKENS[1]))
    engine.advance(part, torch.full((len(chosen),), TOKENS[1]))
    assert relative_error(part.logits, whole.logits[chosen]) < 1e-5
    assert part.n_edited.tolist() == whole.n_edited[chosen].tolist()


@torch.no_grad()
@pytest.mark.parametrize("n_queries", [1, 3])
@pytest.mark.parametrize("n_shared", [0, 5])
def test_attention_with_a_shared_part_is_ordinary_attention(n_queries, n_shared):
    """Four query heads that read two key heads, as in grouped-query attention."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    n_own, scale = 4, 0.3
    shared = KeysValues(draw(1, 2, n_shared, 8), draw(1, 2, n_shared, 8))
    query, key, value = draw(3, 4, n_queries, 8), draw(3, 2, n_own, 8), draw(3, 2, n_own, 8)

    class Module:
        layer_idx = 0

    cache = SharedPrefixCache([shared], 3)
    out, _ = shared_prefix_attention(Module(), query, key, value, None, scale, steering_cache=cache)
    keys = torch.cat([shared.keys.expand(3, -1, -1, -1), key], dim=2)
    values = torch.cat([shared.values.expand(3, -1, -1, -1), value], dim=2)
    for row in range(3):
        for head in range(4):
            for place in range(n_queries):
                seen = n_shared + n_own - n_queries + place + 1
                scores = keys[row, head // 2, :seen] @ query[row, head, place] * scale
                expected = scores.softmax(0) @ values[row, head // 2, :seen]
                torch.testing.assert_close(out[row, place, head], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_model_with_grouped_queries_behind_another_adapter(studies):
    adapter = tiny_llava()
    model = HookedVisionLanguageModel(adapter, studies)
    hook = "blocks.1.hook_resid_post"
    dictionary = make_dictionary(model.cfg.d_model, hook)
    engine = SteeringEngine(model, {hook: dictionary})
    with model.steered([Add(3, 0.5)], saes=dictionary):
        expected = model.generate(studies[0], max_new_tokens=8, min_new_tokens=8)
    state = engine.start(engine.prefill(studies[0]), [Row((Add(3, 0.5),)), Row()])
    tokens = []
    for _ in range(8):
        chosen = state.logits.argmax(dim=-1)
        tokens.append(int(chosen[0]))
        engine.advance(state, chosen)
    assert adapter.processor.tokenizer.batch_decode([tokens], skip_special_tokens=True) == expected


@torch.no_grad()
def test_the_official_layout_with_random_weights(studies):
    """The checkpoint of the reference tests: MAIRA-2's own sizes of everything but width and depth."""
    model = HookedMaira2.from_pretrained(REFERENCE_CHECKPOINT, studies, dtype=torch.float32)
    dictionary = make_dictionary(model.cfg.d_model)
    engine = SteeringEngine(model, {HOOK: dictionary})
    rows = [Row(BIG), Row(BIG, REPORT), Row()]
    reports = write_reports(engine, studies[0], rows, max_new_tokens=6, min_new_tokens=6)
    for row, report in zip(rows, reports, strict=True):
        with model.steered(row.edits, row.where, saes=dictionary):
            assert [report.text] == model.generate(studies[0], max_new_tokens=6, min_new_tokens=6)


@torch.no_grad()
def test_a_model_placed_by_a_device_map_is_steered_alike(studies, dictionary, engine):
    placed = HookedMaira2.from_pretrained("phantom", studies, dtype=torch.float32, device_map={"": "cpu"})
    other = SteeringEngine(placed, {HOOK: dictionary})
    rows = [Row(BIG), Row(BIG, REPORT)]
    results = [
        own.feed(own.start(own.prefill(studies[0]), rows), torch.tensor([TOKENS] * 2)) for own in (engine, other)
    ]
    assert relative_error(*results) < 1e-6


def test_bad_rows_are_refused(engine, studies, dictionary):
    prefill = engine.prefill(studies[1])
    with pytest.raises(SteeringError, match="There is no latent 999"):
        engine.start(prefill, [Row((Add(999, 1.0),))])
    with pytest.raises(SteeringError, match="where: prior_image selects nothing in study 'study 1'"):
        engine.start(prefill, [Row((Add(1, 1.0),), Where(include=("prior_image",)))])
    with pytest.raises(SteeringError, match=r"There is no hook point 'blocks.9.hook_resid_post' in a model"):
        engine.start(prefill, [Row((AddDirection(torch.ones(160), 1.0, "blocks.9.hook_resid_post"),))])
    with pytest.raises(SteeringError, match="is not in the residual stream"):
        engine.residual_at(prefill, "blocks.1.hook_mlp_out")
    assert isinstance(dictionary, Dictionary)
