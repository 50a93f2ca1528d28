"""Sampled studies: a function of seed and index, lazy, picklable, one body over time, concepts that come together."""

import json
import pickle
from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from sae_lens_maira import phantom
from sae_lens_maira.phantom.generate import GENERATOR_VERSION, sample_recipe
from sae_lens_maira.phantom.words.scoring import positives
from sae_lens_maira.phantom.world.film import Shot
from sae_lens_maira.phantom.world.scene import PhantomImage
from tests.phantom import golden


def pixels(study: phantom.PhantomStudy) -> list[bytes]:
    images = (study.frontal, study.lateral, study.prior_frontal)
    return [image.open().tobytes() for image in images if image is not None]


@pytest.fixture(scope="module")
def recipes() -> list[phantom.Recipe]:
    return [sample_recipe(np.random.default_rng([11, i])) for i in range(3000)]


def test_the_same_seed_gives_the_same_studies_and_another_seed_others() -> None:
    first, second, other = (list(phantom.studies(6, seed)) for seed in (5, 5, 6))
    assert first == second
    assert [pixels(study) for study in first] == [pixels(study) for study in second]
    assert all(a.findings != b.findings or pixels(a) != pixels(b) for a, b in zip(first, other, strict=True))


def test_a_study_does_not_depend_on_how_many_are_asked_for() -> None:
    assert list(islice(phantom.studies(1000, 3), 4)) == list(phantom.studies(4, 3))


def test_images_are_drawn_only_when_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: PhantomImage) -> None:
        raise AssertionError("drawn")

    monkeypatch.setattr(PhantomImage, "pixels", refuse)
    study = next(phantom.studies(1, 0))
    with pytest.raises(AssertionError, match="drawn"):
        study.frontal.open()


def test_a_pickled_study_opens_the_same_images() -> None:
    for study in phantom.studies(5, 9):
        again = pickle.loads(pickle.dumps(study))
        assert again == study
        assert pixels(again) == pixels(study)


def test_images_are_gray_squares_of_the_size_asked_for() -> None:
    study = next(s for s in phantom.studies(20, 2, size=140) if s.lateral is not None)
    assert study.lateral is not None
    for image in (study.frontal, study.lateral):
        opened = image.open()
        assert (opened.mode, opened.size) == ("L", (140, 140))


def test_the_prior_shows_the_same_body_in_another_shot() -> None:
    study = phantom.render(["edema"], anatomy_seed=4, prior=["edema"])
    assert study.prior_frontal is not None
    assert study.frontal.shot != study.prior_frontal.shot
    assert not np.array_equal(study.frontal.pixels(), study.prior_frontal.pixels())
    # Taken by the same shot they are one image; another patient's is not.
    same_shot = replace(study.prior_frontal, shot=study.frontal.shot)
    np.testing.assert_array_equal(same_shot.pixels(), study.frontal.pixels())
    assert not np.array_equal(replace(same_shot, anatomy_seed=5).pixels(), study.frontal.pixels())


def test_shots_vary_in_position_exposure_and_noise() -> None:
    shots = [study.frontal.shot for study in phantom.studies(30, 1)]
    for name in ("shift_x", "shift_y", "scale", "tilt", "exposure", "noise", "noise_seed"):
        assert len({getattr(shot, name) for shot in shots}) == 30, name
    image = PhantomImage(1, {}, Shot(exposure=0.9))
    assert replace(image, shot=Shot(exposure=1.2)).pixels().mean() > image.pixels().mean() + 10


def test_labels_agree_with_report_request_and_images() -> None:
    for study in phantom.studies(60, 21):
        assert positives(study.labels) == set(study.recipe.state) == set(study.frontal.state)
        assert set(study.labels) == set(phantom.CONCEPTS)
        has = {name: study.labels[name].positive for name in phantom.TEXT_ONLY}
        assert has["comparison_prior"] == (study.prior_frontal is not None) != has["comparison_none"]
        assert has["technique_two_views"] == (study.lateral is not None)
        assert has["technique_portable"] == (study.view == "AP")
        assert sum(has[name] for name in has if name.startswith("indication_")) == 1
        assert study.shareable
        if study.prior_report is not None:
            assert study.prior_frontal is not None
            assert phantom.parse_report(study.prior_report).positives == set(study.prior_frontal.state)


def test_concepts_come_together_as_in_a_clinic(recipes: list[phantom.Recipe]) -> None:
    def share(name: str, given: str | None = None) -> float:
        those = [r for r in recipes if given is None or any(c.startswith(given) for c in r.state)]
        return sum(any(c.startswith(name) for c in r.state) for r in those) / len(those)

    assert share("nasogastric_tube", given="endotracheal_tube") > 3 * share("nasogastric_tube")
    assert share("cardiomegaly", given="edema") > 2 * share("cardiomegaly")
    assert share("pneumothorax_left", given="rib_fracture_left") > 2 * share("pneumothorax_left")
    assert share("rib_fracture", given="sternotomy_wires") < 0.2 * share("rib_fracture")


def test_a_share_of_studies_is_normal_and_no_concept_is_rare(recipes: list[phantom.Recipe]) -> None:
    counts = Counter(name for recipe in recipes for name in recipe.state)
    assert min(counts[name] for name in phantom.VISIBLE) > 0.03 * len(recipes)
    assert 0.1 < sum(not recipe.state for recipe in recipes) / len(recipes) < 0.35
    assert 0.4 < sum(recipe.prior is not None for recipe in recipes) / len(recipes) < 0.7
    assert any(look.subtle for recipe in recipes for look in recipe.state.values())


def test_all_five_changes_occur() -> None:
    changes = Counter(label.change for study in phantom.studies(300, 8) for label in study.labels.values())
    assert all(changes[change] >= 20 for change in ("new", "larger", "smaller", "unchanged", "removed"))


def test_swapping_the_prior_turns_unchanged_into_new_and_leaves_the_image() -> None:
    study = phantom.render(["pacemaker", "edema"], 3, prior=["pacemaker", "edema"], seed=2)
    swapped = phantom.counterfactual(study, prior=["edema"])
    assert (study.labels["pacemaker"].change, swapped.labels["pacemaker"].change) == ("unchanged", "new")
    assert swapped.labels["edema"] == study.labels["edema"]
    assert swapped.frontal == study.frontal
    assert swapped.prior_frontal is not None
    assert set(swapped.prior_frontal.state) == {"edema"}
    assert phantom.counterfactual(study) == study


ADVICE = "the phantom's studies changed: raise GENERATOR_VERSION and update the hash: python -m tests.phantom.golden"


def test_what_the_generator_makes_changes_only_with_its_version() -> None:
    studies = golden.golden_studies()
    kept = json.loads(golden.HASH_PATH.read_text(encoding="utf-8"))
    assert kept == {"generator_version": GENERATOR_VERSION, "texts": golden.texts_hash(studies)}, ADVICE
    means, kept_means = golden.block_means(studies), golden.golden_means()
    assert means.shape == kept_means.shape, ADVICE
    assert np.abs(means - kept_means).max() <= 0.75, ADVICE


def test_the_golden_record_notices_a_small_change_of_a_concept_and_of_a_word() -> None:
    study = phantom.render(["nodule_left"], anatomy_seed=3)
    subtle = phantom.render({"nodule_left": phantom.Appearance(1, subtle=True)}, anatomy_seed=3)
    darker = replace(study, frontal=replace(study.frontal, shot=replace(study.frontal.shot, exposure=0.98)))
    unchanged = golden.block_means([study])
    for changed in (subtle, darker):
        assert np.abs(golden.block_means([changed]) - unchanged).max() > 1.5
    assert golden.texts_hash([replace(study, technique="PA.")]) != golden.texts_hash([study])
    assert golden.texts_hash([darker]) == golden.texts_hash([study])
