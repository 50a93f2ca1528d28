"""Generation with hooks, against the plain model's own generation under raw PyTorch hooks."""

from dataclasses import replace

import pytest
import torch

from sae_lens_maira.hooked import HookedMaira2
from sae_lens_maira.maira2 import Maira2ForConditionalGeneration
from tests.plain_maira2 import (
    CHECKPOINTS,
    count_calls,
    edited_at,
    kept_by_the_paper,
    phantom_studies,
    plain_activations,
    prompt_of,
    raw_hook,
    relative_error,
)

N_NEW = 6
NAMES = [f"blocks.2.{point}" for point in ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")]
NAMES.append("hook_image_embeds")
# Reports end only by their length, so that every study takes the same number of steps.
FIXED_LENGTH = {"max_new_tokens": N_NEW, "min_new_tokens": N_NEW}


@pytest.fixture(scope="module")
def studies():
    """Studies of different lengths, so that a batch is padded."""
    return phantom_studies()


@pytest.fixture(scope="module", params=CHECKPOINTS, ids=lambda path: path.name)
def plain(request):
    return Maira2ForConditionalGeneration.from_pretrained(request.param, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def hooked(plain):
    return HookedMaira2.from_pretrained(plain.config.name_or_path, dtype=torch.float32)


def plain_reports(plain, processor, studies, **kwargs):
    inputs = processor([prompt_of(study, with_findings=False) for study in studies], padding_side="left")
    inputs.pop("token_kinds")
    output = plain.generate(**inputs, **{"do_sample": False, **FIXED_LENGTH, **kwargs})
    return processor.decode_reports(output, inputs["input_ids"])


def question(processor, study):
    """The prompt of one study, and the positions that rows keep of it."""
    inputs = dict(processor(prompt_of(study, with_findings=False)))
    kept = kept_by_the_paper(inputs.pop("token_kinds")[0].tolist())
    mask = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    mask[0, kept] = True
    return inputs, mask


def test_reports_are_the_plain_models_in_a_batch_and_alone(hooked, plain, studies):
    reports = hooked.generate(studies, **FIXED_LENGTH)
    assert reports == plain_reports(plain, hooked.processor, studies)
    for study, report in zip(studies, reports, strict=True):
        assert hooked.generate(study, **FIXED_LENGTH) == [report]


def test_the_findings_of_a_study_are_not_shown_to_the_model(hooked, studies):
    silent = [replace(study, findings=None, sentences=()) for study in studies]
    assert hooked.generate(silent, **FIXED_LENGTH) == hooked.generate(studies, **FIXED_LENGTH)


@pytest.mark.parametrize("name", NAMES)
def test_hooks_are_called_once_a_step_and_an_identity_changes_nothing(hooked, studies, name):
    shapes = []

    def identity(value, hook):
        shapes.append(tuple(value.shape))
        return value.clone()

    expected = hooked.generate(studies, **FIXED_LENGTH)
    with hooked.hooks(fwd_hooks=[(name, identity)]), count_calls(hooked.maira2.lm_head) as steps:
        assert hooked.generate(studies, **FIXED_LENGTH) == expected
    assert steps == [N_NEW]
    if name == "hook_image_embeds":  # images are only in the prompt
        assert shapes == [(8, hooked.processor.n_image_tokens, hooked.cfg.d_model)]
    else:
        longest = max(int(question(hooked.processor, study)[1].sum()) for study in studies)
        assert shapes == [(4, longest, hooked.cfg.d_model)] + [(4, 1, hooked.cfg.d_model)] * (N_NEW - 1)


@pytest.mark.parametrize("name", NAMES)
def test_every_step_is_steered_as_by_raw_hooks(hooked, plain, studies, name):
    study = studies[3]
    direction = torch.randn(hooked.cfg.d_model, generator=torch.Generator().manual_seed(0))
    inputs, kept = question(hooked.processor, study)
    n_edited = 0

    def raw(value):
        nonlocal n_edited
        mask = kept if value.shape[1] == kept.shape[1] else torch.ones(value.shape[:2], dtype=torch.bool)
        n_edited += int(mask.sum())
        return edited_at(mask, lambda part: part + 4 * direction)(value)

    with raw_hook(plain, name, raw):
        output = plain.generate(
            **inputs, do_sample=False, **FIXED_LENGTH, return_dict_in_generate=True, output_logits=True
        )
    expected = hooked.processor.decode_reports(output.sequences, inputs["input_ids"])
    n_steered = 0

    def steer(value, hook):
        nonlocal n_steered
        n_steered += value.shape[0] * value.shape[1]
        return value + 4 * direction

    logits = []
    handle = hooked.maira2.lm_head.register_forward_hook(lambda _m, _a, out: logits.append(out[:, -1]))
    try:
        with hooked.hooks(fwd_hooks=[(name, steer)]):
            assert hooked.generate(study, **FIXED_LENGTH) == expected
    finally:
        handle.remove()
    assert n_steered == n_edited
    assert len(logits) == N_NEW
    for actual, plain_step in zip(logits, output.logits, strict=True):
        assert relative_error(actual, plain_step) <= 1e-5
    assert hooked.generate(study, **FIXED_LENGTH) == plain_reports(plain, hooked.processor, [study])


def test_steering_a_padded_batch_is_steering_each_study_alone(hooked, studies):
    direction = torch.randn(hooked.cfg.d_model, generator=torch.Generator().manual_seed(1))
    steer = [("blocks.1.hook_resid_post", lambda value, hook: value + 4 * direction)]
    with hooked.hooks(fwd_hooks=steer):
        together = hooked.generate(studies, **FIXED_LENGTH)
        assert together == [hooked.generate(study, **FIXED_LENGTH)[0] for study in studies]
    assert together != hooked.generate(studies, **FIXED_LENGTH)


def test_hooks_see_the_prompts_kept_positions(hooked, plain, studies):
    name, seen = "blocks.3.hook_resid_post", []
    with hooked.hooks(fwd_hooks=[(name, lambda value, hook: seen.append(value.clone()))]):
        hooked.generate(studies, max_new_tokens=1)
    for row, study in enumerate(studies):
        inputs, _ = question(hooked.processor, study)
        kinds = hooked.processor(prompt_of(study, with_findings=False))["token_kinds"][0].tolist()
        kept = kept_by_the_paper(kinds)
        with torch.no_grad():
            expected = plain_activations(plain, inputs, name)[0, kept]
        assert relative_error(seen[0][row, : len(kept)], expected) <= 1e-5
        assert not seen[0][row, len(kept) :].any()


def test_beams_are_steered_all(hooked, plain, studies):
    """transformers repeats each prompt for its beams, next to each other."""
    study = studies[1]
    direction = torch.randn(hooked.cfg.d_model, generator=torch.Generator().manual_seed(2))
    inputs, kept = question(hooked.processor, study)

    def raw(value):
        is_prompt = value.shape[1] == kept.shape[1]
        mask = kept.expand(value.shape[:2]) if is_prompt else torch.ones(value.shape[:2], dtype=torch.bool)
        return edited_at(mask, lambda part: part + 20 * direction)(value)

    name = "blocks.2.hook_resid_post"
    with raw_hook(plain, name, raw):
        output = plain.generate(**inputs, do_sample=False, num_beams=3, **FIXED_LENGTH)
    with hooked.hooks(fwd_hooks=[(name, lambda value, hook: value + 20 * direction)]):
        report = hooked.generate(study, num_beams=3, **FIXED_LENGTH)
    assert report == hooked.processor.decode_reports(output, inputs["input_ids"])
    assert report != hooked.generate(study, num_beams=3, **FIXED_LENGTH)


def test_no_hook_is_left_on_the_model(hooked, studies):
    with hooked.hooks(fwd_hooks=[(name, lambda value, hook: None) for name in NAMES]):
        hooked.generate(studies[0], max_new_tokens=2)
    layer = hooked.maira2.model.language_model.layers[2]
    before = {module: len(module._forward_hooks) + len(module._forward_pre_hooks) for module in layer.modules()}
    with pytest.raises(ZeroDivisionError), hooked.hooks(fwd_hooks=[(NAMES[1], lambda value, hook: 1 / 0)]):
        hooked.generate(studies[0], max_new_tokens=2)
    assert before == {module: len(module._forward_hooks) + len(module._forward_pre_hooks) for module in layer.modules()}
    assert not any(point.fwd_hooks for point in hooked.hook_dict.values())
