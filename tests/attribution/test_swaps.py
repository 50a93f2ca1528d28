"""What sources are swapped for."""

from dataclasses import replace

import pytest

from sae_lens_maira import phantom
from sae_lens_maira.attribution.swaps import Donors, Replacement, sources_of, views_of, with_texts
from sae_lens_maira.data.study import Label, SectionName


@pytest.fixture(scope="module")
def many():
    return list(phantom.studies(60, seed=9))


def positive(study):
    return {name for name, label in study.labels.items() if label.positive}


def test_different_donors_share_no_more_labels_than_any_other_study(many):
    donors = Donors(many, seed=0)
    for index, study in enumerate(many[:20]):
        donor = donors.replacement(index, "different").images["frontal"]
        assert donor is not None
        assert donor.patient_id != study.patient_id
        common = [
            len(positive(other) & positive(study))
            for other in many
            if other is not study and ("lateral" not in study.images or "lateral" in other.images)
        ]
        assert len(positive(donor) & positive(study)) == min(common)


def test_same_donors_are_the_most_similar_ones(many):
    donors = Donors(many, seed=0)
    for index, study in enumerate(many[:20]):
        donor = donors.replacement(index, "same").images["frontal"]
        assert donor is not None
        overlap = lambda other: len(positive(other) & positive(study)) / len(positive(other) | positive(study))  # noqa: B023, E731
        usable = [
            other
            for other in many
            if other is not study and ("lateral" not in study.images or "lateral" in other.images)
        ]
        assert overlap(donor) == max(map(overlap, usable))


def test_a_request_is_swapped_for_one_that_says_something_else(many):
    donors = Donors(many, seed=0)
    for index, study in enumerate(many[:20]):
        texts = donors.replacement(index, "different").texts
        assert all(texts[name] != getattr(study, name) for name in ("indication", "technique", "comparison"))


def test_a_patients_own_studies_are_no_donors(many):
    study = replace(many[0], patient_id="one")
    twins = [study, *(replace(other, patient_id="one") for other in many[1:])]
    replacement = Donors(twins, seed=0).replacement(0, "different")
    assert set(replacement.images.values()) == {None}
    assert set(replacement.texts.values()) <= {None}


def test_donors_have_what_they_give(many):
    donors = Donors(many, seed=0)
    for index, study in enumerate(many):
        replacement = donors.replacement(index, "different")
        assert set(replacement.images) == set(study.images)
        for view, donor in replacement.images.items():
            assert donor is not None
            assert view in donor.images
        if "prior_report" in sources_of(study):
            assert replacement.texts["prior_report"]


def test_the_draw_depends_on_seed_and_study_not_on_order(many):
    first = Donors(many, seed=0)
    turned = Donors(many[::-1], seed=0)
    names = lambda found: {view: donor and donor.study_id for view, donor in found.images.items()}  # noqa: E731
    assert names(first.replacement(3, "different")) == names(Donors(many, seed=0).replacement(3, "different"))
    different = [
        names(first.replacement(index, "different")) != names(Donors(many, seed=1).replacement(index, "different"))
        for index in range(20)
    ]
    assert any(different)
    assert set(names(turned.replacement(len(many) - 4, "different"))) == set(names(first.replacement(3, "different")))


def test_the_phantoms_counterfactual_is_the_same_body(many):
    donors = Donors(many, seed=0)
    for index, study in enumerate(many[:20]):
        replacement = donors.replacement(index, "counterfactual")
        other = replacement.images["frontal"]
        assert isinstance(other, phantom.PhantomStudy)
        assert other.recipe.anatomy_seed == study.recipe.anatomy_seed
        assert other.frontal.shot == study.frontal.shot
        assert set(other.recipe.state) != set(study.recipe.state)
        assert not (study.recipe.state and other.recipe.state)
        assert replacement.texts["indication"] != study.indication
        assert positive(study) & {f"indication_{study.recipe.indication}"}


def test_only_the_phantom_can_be_drawn_again(many):
    plain = [replace(phantom.render([], seed), labels={"edema": Label("present")}) for seed in (1, 2)]
    from sae_lens_maira.data.study import Study

    real = [Study(study.study_id, study.patient_id, study.frontal, findings="Clear.") for study in plain]
    with pytest.raises(ValueError, match="not the phantom's"):
        Donors(real, seed=0).replacement(0, "counterfactual")


def test_swapped_texts_and_no_others(many):
    study = next(study for study in many if study.prior_report)
    texts: dict[SectionName, str | None] = {
        "indication": "A",
        "technique": "B",
        "comparison": "C",
        "prior_report": "D",
        "findings": "E",
    }
    swapped = with_texts(study, Replacement({}, texts), ["prompt", "report"])
    assert (swapped.indication, swapped.technique, swapped.comparison, swapped.findings) == ("A", "B", "C", "E")
    assert swapped.prior_report == study.prior_report
    assert swapped.images == study.images
    assert views_of("current_images", study) == tuple(view for view in ("frontal", "lateral") if view in study.images)
