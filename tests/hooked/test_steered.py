"""``model.steered(...)`` against plain PyTorch hooks at every position of the full prompt."""

import pytest
import torch

from sae_lens_maira.data.study import TokenKind
from sae_lens_maira.errors import SaeMismatch, SteeringError
from sae_lens_maira.hooked import Ablate, Add, AddDirection, HookedMaira2, Where
from sae_lens_maira.hooked.dictionary import Dictionary, measure_firing
from sae_lens_maira.maira2 import Maira2ForConditionalGeneration
from tests.plain_maira2 import (
    CHECKPOINTS,
    PlainBatch,
    phantom_studies,
    prompt_of,
    raw_hook,
    relative_error,
)
from tests.steered_sae import D_SAE, HOOK, edited_plainly, make_dictionary, make_sae

NEW = {"max_new_tokens": 6, "min_new_tokens": 6}


@pytest.fixture(scope="module")
def studies():
    return phantom_studies()


@pytest.fixture(scope="module", params=CHECKPOINTS, ids=lambda path: path.name)
def plain(request):
    return Maira2ForConditionalGeneration.from_pretrained(request.param, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def hooked(plain, studies):
    return HookedMaira2.from_pretrained(plain.config.name_or_path, studies, dtype=torch.float32)


@pytest.fixture(scope="module")
def dictionary(hooked):
    return make_dictionary(hooked.cfg.d_model)


@pytest.fixture
def tokens(hooked, studies):
    return hooked.reader.rows(range(len(studies)), None)


def plain_logits(plain, hooked, studies, change, places):
    """Logits at all positions of the plain model, with ``change`` applied where ``places(kinds)`` says so."""
    batch = PlainBatch.of(hooked.processor, studies)
    kinds = batch.inputs.pop("token_kinds")
    mask = places(kinds)
    with raw_hook(plain, HOOK, lambda value: torch.where(mask[..., None], change(value), value)), torch.no_grad():
        return plain(**batch.inputs, use_cache=False).logits, batch.kept


@torch.no_grad()
def test_edits_reach_every_position_and_the_logits_are_a_plain_hooks(hooked, plain, studies, dictionary, tokens):
    edits = [Add(3, 0.5), Ablate(7), AddDirection(torch.ones(hooked.cfg.d_model), 0.1, HOOK)]
    expected, kept = plain_logits(
        plain,
        hooked,
        studies,
        lambda value: edited_plainly(value, tuple(edits), dictionary.sae),
        lambda kinds: kinds != TokenKind.PAD,
    )
    with hooked.steered(edits, saes=dictionary) as steering:
        logits = hooked(tokens)
    for row, own in enumerate(kept):
        predicting = [position - 1 for position in own[1:]]
        assert relative_error(logits[row, : len(predicting)], expected[row, predicting]) < 1e-4
    n_real = sum(int((kinds != TokenKind.PAD).sum()) for kinds in hooked.full_inputs(tokens).kinds)
    assert steering.n_asked == n_real
    assert steering.n_edited == {HOOK: n_real}
    assert relative_error(hooked(tokens), logits) > 1e-3


@torch.no_grad()
def test_only_the_chosen_places_are_edited(hooked, plain, studies, dictionary, tokens):
    images = (TokenKind.FRONTAL_IMAGE, TokenKind.LATERAL_IMAGE)
    where = Where(include=("frontal_image", "lateral_image", "indication"), exclude=("lateral_image",))
    expected, kept = plain_logits(
        plain,
        hooked,
        studies,
        lambda value: edited_plainly(value, (Add(3, 2.0),), dictionary.sae),
        lambda kinds: (kinds == images[0]) | (kinds == TokenKind.INDICATION),
    )
    with hooked.steered([Add(3, 2.0)], where, saes=dictionary):
        logits = hooked(tokens)
    for row, own in enumerate(kept):
        predicting = [position - 1 for position in own[1:]]
        assert relative_error(logits[row, : len(predicting)], expected[row, predicting]) < 1e-4


@torch.no_grad()
def test_the_cache_and_attached_saes_see_the_edit(hooked, dictionary, tokens):
    _, before = hooked.run_with_cache(tokens, names_filter=HOOK)
    with hooked.steered([Add(3, 2.0)], saes=dictionary):
        _, after = hooked.run_with_cache(tokens, names_filter=HOOK)
        steered = hooked(tokens)
        _, spliced = hooked.run_with_cache_with_saes(tokens, saes=[dictionary.sae], use_error_term=True)
        with_sae = hooked.run_with_saes(tokens, saes=[dictionary.sae], use_error_term=True)
        loss = hooked(tokens, return_type="loss")
    is_token = (tokens != hooked.tokenizer.pad_token_id)[..., None]
    expected = (before[HOOK] + 2.0 * 4 * dictionary.decoder[3]) * is_token
    assert relative_error(after[HOOK] * is_token, expected) < 1e-6
    acts = spliced[f"{HOOK}.hook_sae_acts_post"]
    assert relative_error(acts * is_token, dictionary.sae.encode(expected) * is_token) < 1e-5
    assert relative_error(with_sae, steered) < 1e-4
    assert abs(float(loss) - float(hooked(tokens, return_type="loss"))) > 1e-4


@torch.no_grad()
def test_a_dose_of_zero_is_the_unsteered_model_bit_for_bit(hooked, studies, dictionary, tokens):
    with hooked.steered([Add(3, 0.0)], saes=dictionary):
        logits, reports = hooked(tokens), hooked.generate(studies, **NEW)
    assert torch.equal(logits, hooked(tokens))
    assert reports == hooked.generate(studies, **NEW)


@pytest.mark.parametrize("where", [Where(), Where(include=("report", "images"), window=(1, 3))], ids=str)
def test_generation_is_edited_at_every_step_as_by_a_plain_hook(hooked, plain, studies, dictionary, where):
    study, n_edited = studies[3], 0
    inputs = dict(hooked.processor(prompt_of(study, with_findings=False)))
    kinds = inputs.pop("token_kinds")
    n_prompt, step = kinds.shape[1], -1

    def raw(value):
        nonlocal n_edited, step
        if value.shape[1] == n_prompt:
            mask = torch.from_numpy(where.mask(kinds[0].numpy()))[None]
        else:
            step += 1
            mask = torch.tensor([[where.window is None or where.window[0] <= step < where.window[1]]])
        n_edited += int(mask.sum())
        return torch.where(mask[..., None], value + 4 * 4 * dictionary.decoder[3], value)

    with raw_hook(plain, HOOK, raw):
        output = plain.generate(**inputs, do_sample=False, **NEW)
    expected = hooked.processor.decode_reports(output, inputs["input_ids"])
    with hooked.steered([Add(3, 4.0)], where, saes=dictionary) as steering:
        assert hooked.generate(study, **NEW) == expected
    assert steering.n_edited == {HOOK: n_edited}
    assert steering.n_asked == n_edited


def test_a_padded_batch_is_steered_like_each_study_alone(hooked, studies, dictionary):
    with hooked.steered([Add(5, 3.0)], saes=dictionary):
        together = hooked.generate(studies, **NEW)
        assert together == [hooked.generate(study, **NEW)[0] for study in studies]
    assert together != hooked.generate(studies, **NEW)


@torch.no_grad()
def test_strengths_are_percentiles_of_positive_activations(hooked, tokens):
    sae = make_sae(hooked.cfg.d_model)
    _, cache = hooked.run_with_cache(tokens, names_filter=HOOK)
    acts = sae.encode(cache[HOOK][tokens != hooked.tokenizer.pad_token_id]).numpy()
    expected = [float(torch.tensor(own[own > 0]).quantile(0.9)) if (own > 0).any() else 0.0 for own in acts.T]
    found = measure_firing(hooked, sae, percentile=90)
    assert found.densities.tolist() == pytest.approx((acts > 0).mean(axis=0))
    torch.testing.assert_close(found.strengths, torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_steered_is_refused(hooked, dictionary, studies):
    small = make_sae(7)
    with pytest.raises(SaeMismatch, match="d_in is 7"), hooked.steered([Add(1, 1.0)], saes=small):
        pass
    with (
        pytest.raises(SteeringError, match="'hook_image_embeds' cannot be edited"),
        hooked.steered([AddDirection(torch.ones(hooked.cfg.d_model), 1.0, "hook_image_embeds")], saes=dictionary),
    ):
        pass
    with (
        pytest.raises(SteeringError, match="steered already"),
        hooked.steered([Add(1, 1.0)], saes=dictionary),
        hooked.steered([Add(2, 1.0)], saes=dictionary),
    ):
        pass
    with (
        pytest.raises(SteeringError, match="selects nothing"),
        hooked.steered([Add(1, 1.0)], Where(include=("prior_image",)), saes=dictionary),
    ):
        hooked.generate(studies[1], **NEW)
    with pytest.raises(SteeringError, match="Strengths of latents must be finite"):
        Dictionary(make_sae(4), torch.full((D_SAE,), float("nan")))
