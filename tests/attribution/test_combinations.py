"""Combinations of sources against the plain model, which is run for one combination at a time."""

from itertools import product

import numpy as np
import pytest
import torch

from sae_lens_maira.attribution.combinations import PLACES, place_positions, play, shared_length
from sae_lens_maira.attribution.shares import SOURCES, Effects
from sae_lens_maira.attribution.swaps import Replacement, sources_of
from sae_lens_maira.data.study import SectionName, TokenKind
from sae_lens_maira.maira2 import FindingsPrompt
from tests.plain_maira2 import first

TEXTS: dict[SectionName, str | None] = {
    "indication": "Cough.",
    "technique": "PA chest radiograph.",
    "comparison": "None.",
    "prior_report": "The heart is enlarged.",
    "findings": "The lungs are clear. No pleural effusion.",
}


def plain_value(model, reader, study, donor, own, place):
    """One combination, from the pixels on, with the plain model and a PyTorch hook; features by their definition."""
    pick = lambda source, name: getattr(study, name) if source in own else TEXTS[name]  # noqa: E731
    image = lambda source, view: getattr(study if source in own else donor, view)  # noqa: E731
    has_prior = study.prior_frontal is not None
    prompt = FindingsPrompt(
        image("current_images", "frontal"),
        image("current_images", "lateral") if study.lateral else None,
        image("prior_image", "prior_frontal") if has_prior else None,
        pick("prompt", "indication"),
        pick("prompt", "technique"),
        pick("prompt", "comparison"),
        pick("prior_report", "prior_report") if study.prior_report else None,
        assistant_text=pick("report", "findings"),
    )
    inputs = model.processor([prompt], padding_side="right")
    seen = []
    handle = model.maira2.model.language_model.layers[1].register_forward_hook(
        lambda _module, _args, output: seen.append(first(output))
    )
    with torch.no_grad():
        model.maira2(**inputs)
    handle.remove()
    kinds = inputs["token_kinds"][0].numpy()
    findings = np.flatnonzero(kinds == TokenKind.FINDINGS)
    request = (TokenKind.INDICATION, TokenKind.TECHNIQUE, TokenKind.COMPARISON)
    positions = {
        "last_prompt": [findings[0] - 1],
        "request": np.flatnonzero(np.isin(kinds, request)),
        "findings": [findings[0] - 1, *findings],
    }[place]
    sae = reader.sae
    values = (seen[0][0, positions] - sae.b_dec) @ sae.W_enc + sae.b_enc
    return (values.max(dim=0).values * sae.W_dec.norm(dim=1)).detach().numpy()


@pytest.fixture(scope="module")
def donor(studies):
    return studies[3]  # it has every image


@pytest.mark.parametrize("index", [0, 1, 2])
def test_every_combination_is_the_plain_models(model, reader, studies, donor, index):
    study = studies[index]
    game = play(reader, study, Replacement(dict.fromkeys(study.images, donor), TEXTS))
    assert game.sources == sources_of(study)
    assert len(game.values) == 2 ** len(game.sources)
    for number in {0, 1, 2, 5 % len(game.values), len(game.values) - 2, len(game.values) - 1}:
        own = {source for bit, source in enumerate(game.sources) if number >> bit & 1}
        for place, name in enumerate(PLACES):
            expected = plain_value(model, reader, study, donor, own, name)
            np.testing.assert_allclose(game.values[number, place], expected, rtol=1e-3, atol=2e-4)


def test_sources_by_what_a_study_has(studies):
    assert [sources_of(study) for study in studies] == [
        SOURCES,
        ("current_images", "prompt", "report"),
        ("current_images", "prompt", "report"),
        SOURCES,
    ]


def test_the_report_cannot_act_on_what_comes_before_it(reader, studies, donor):
    study = studies[0]
    effects = Effects.of(play(reader, study, Replacement(dict.fromkeys(study.images, donor), TEXTS)))
    report = effects.shapley[SOURCES.index("report")]
    assert np.abs(report[:2]).max() < 1e-4
    assert np.abs(report[2]).max() > 1e-2
    total = effects.shapley.sum(axis=0)
    game = play(reader, study, Replacement(dict.fromkeys(study.images, donor), TEXTS))
    np.testing.assert_allclose(total, game.values[-1] - game.values[0], atol=1e-4)


def test_swapping_a_study_for_itself_changes_nothing(reader, studies):
    study = studies[3]
    same = Replacement(dict.fromkeys(study.images, study), study.texts)
    effects = Effects.of(play(reader, study, same))
    assert np.abs(effects.shapley).max() < 1e-4


def test_a_blank_image_is_the_mean_gray_after_normalization(model, reader, studies):
    study = studies[1]
    game = play(reader, study, Replacement({"frontal": None}, dict(study.texts)))
    inputs = dict(
        model.processor(
            [
                FindingsPrompt(
                    study.frontal,
                    assistant_text=study.findings,
                    indication=study.indication,
                    technique=study.technique,
                    comparison=study.comparison,
                )
            ],
            padding_side="right",
        )
    )
    inputs["pixel_values"] = torch.zeros_like(inputs["pixel_values"])
    seen = []
    handle = model.maira2.model.language_model.layers[1].register_forward_hook(
        lambda _module, _args, output: seen.append(first(output))
    )
    with torch.no_grad():
        model.maira2(**inputs)
    handle.remove()
    (last,), _, _ = place_positions(inputs["token_kinds"][0].numpy())
    sae = reader.sae
    expected = ((seen[0][0, last] - sae.b_dec) @ sae.W_enc + sae.b_enc) * sae.W_dec.norm(dim=1)
    without_image = sum(1 << bit for bit, source in enumerate(game.sources) if source != "current_images")
    np.testing.assert_allclose(game.values[without_image, 0], expected.detach(), rtol=1e-3, atol=2e-4)


def test_an_empty_report_leaves_the_last_token_of_the_prompt(reader, studies):
    study = studies[1]
    game = play(reader, study, Replacement({"frontal": study}, {**study.texts, "findings": None}))
    without_report = sum(1 << bit for bit, source in enumerate(game.sources) if source != "report")
    np.testing.assert_allclose(game.values[without_report, 2], game.values[without_report, 0], atol=1e-6)


def test_the_place_findings_starts_where_the_first_word_is_predicted():
    kinds = np.array([0, 9, 9, 0, 1, 1, 0, 2, 3, 0, 6, 6, 7])
    assert [at.tolist() for at in place_positions(kinds)] == [[9], [4, 5, 7, 8], [9, 10, 11]]
    assert [at.tolist() for at in place_positions(kinds[:10])] == [[9], [4, 5, 7, 8], [9]]


def test_the_shared_tokens_end_before_the_first_difference_and_leave_one_over():
    for lengths in product((2, 3, 5), repeat=2):
        same = [np.arange(length) for length in lengths]
        assert shared_length(same) == min(lengths) - 1
    assert shared_length([np.array([1, 2, 3, 4]), np.array([1, 2, 9, 4])]) == 2
