"""Units, facts and examples, on studies whose meaning is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_lens_maira.data.study import Label
from sae_lens_maira.interpret.evidence import PARTS
from sae_lens_maira.interpret.examples import SILENT_KINDS
from sae_lens_maira.interpret.facts import Fact, facts_of_labels, parts_of
from sae_lens_maira.interpret.rules import SILENT, STRONG
from sae_lens_maira.interpret.shown import marked_text, show
from sae_lens_maira.measures.splits import split_patients
from tests.interpret.planted import EFFUSION, IMAGE, PACEMAKER, WORD


def test_the_units_of_a_section_are_its_sentences_in_order(evidence):
    corpus = evidence.corpus
    for number in (0, 7, 30):
        study = corpus.studies[number]
        for section, text in study.texts.items():
            own = [
                corpus.units[place].text
                for place in corpus.units_of_study(number)
                if corpus.units[place].place == section
            ]
            assert " ".join(own) == " ".join(text.split())
            assert all(sentence.count(".") <= 1 for sentence in own)


def test_a_sentence_has_the_labels_that_the_source_gives_it(evidence):
    corpus = evidence.corpus
    for number in range(40):
        study = corpus.studies[number]
        for sentence in study.sentences:
            text = study.findings[sentence.start : sentence.end]
            unit = next(u for u in corpus.units if u.study == number and u.place == "findings" and u.text == text)
            for name, label in sentence.labels.items():
                assert (Fact("concept", name) in unit.facts) == label.positive
                assert not label.change or Fact("change", label.change) in unit.facts


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("effusion_left_small", ("effusion", "left", "small")),
        ("endotracheal_tube_too_low", ("endotracheal_tube", None, None)),
        ("pacemaker", ("pacemaker", None, None)),
        ("Opacity/lung/base/left/mild", ("opacity", "left", "small")),
        ("Pleural Effusion", ("pleural effusion", None, None)),
    ],
)
def test_names_of_labels_are_taken_apart(name, parts):
    assert tuple(parts_of(name)) == parts


def test_an_absent_finding_is_no_finding():
    facts = facts_of_labels({"edema": Label("absent"), "nodule_left": Label("uncertain", "new")})
    assert {Fact("absent", "edema"), Fact("finding", "nodule"), Fact("side", "left"), Fact("change", "new")} <= facts
    assert Fact("finding", "edema") not in facts


def test_the_strongest_token_of_a_unit_counts_and_is_marked(evidence):
    corpus = evidence.corpus
    unit = next(n for n, u in enumerate(corpus.units) if "tube" in u.text.lower().split() and u.place == "findings")
    assert corpus.activations[[unit]].toarray()[0, WORD] == 1
    marked = marked_text(corpus, unit, WORD)
    assert marked.startswith("[findings] ")
    assert marked.count("«") == marked.count("»") == 1
    assert marked.endswith("«.»")  # planted at the last token


@given(seed=st.integers(0, 2**31), n_patients=st.integers(1, 40))
def test_no_patient_is_on_two_sides(seed, n_patients):
    patients = [f"patient {number % n_patients}" for number in range(3 * n_patients)]
    parts = split_patients(patients, {"explain": 0.5, "choose": 0.2, "score": 0.3}, seed)
    sides = [{patients[index] for index in own} for own in parts.values()]
    assert sum(len(side) for side in sides) == len(set.union(*sides))


def test_examples_come_from_their_set_of_patients_alone(evidence):
    corpus = evidence.corpus
    seen: dict[str, set[str]] = {}
    for part in PARTS:
        found = [e for feature in range(corpus.n_features) for e in evidence.examples(part).find(feature, 20, 10)]
        seen[part] = {corpus.patients[example.unit] for example in found}
    assert not seen["explain"] & seen["choose"]
    assert not seen["explain"] & seen["score"]
    assert not seen["choose"] & seen["score"]


def test_examples_are_on_or_silent_and_of_the_kind_they_claim(evidence):
    corpus, finder = evidence.corpus, evidence.examples("score")
    found = finder.find(EFFUSION, 8, 6)
    strengths = finder.strengths(EFFUSION)
    assert len([e for e in found if e.is_on]) == 8
    assert all(strengths[e.unit] > STRONG for e in found if e.is_on)
    assert all(strengths[e.unit] <= SILENT for e in found if not e.is_on)
    places = {corpus.units[e.unit].place for e in found if e.is_on}
    assert all(corpus.units[e.unit].place in places for e in found if e.kind == "same_section")
    contrast = [corpus.units[e.unit].facts for e in found if e.kind == "contrast"]
    assert contrast
    assert all(Fact("absent", "effusion") in facts for facts in contrast)
    assert len({e.unit for e in found}) == len(found)


def test_positives_spread_over_quantiles_of_strength_and_over_studies(evidence):
    found = [e for e in evidence.examples("explain").find(PACEMAKER, 6, 1) if e.is_on]
    assert len({evidence.corpus.units[e.unit].study for e in found}) == 6


def test_a_counterfactual_is_the_same_image_without_the_concept(evidence):
    corpus = evidence.corpus
    found = [e for e in evidence.examples("score").find(IMAGE, 40, 10) if e.kind == "counterfactual"]
    assert found
    for example in found:
        unit = corpus.units[example.unit]
        new = next(c for c in evidence.counterfactuals if c.study == unit.study)
        assert new.concept == "cardiomegaly"
        assert corpus.studies[new.study].patient_id == corpus.studies[new.origin].patient_id
        assert Fact("concept", "cardiomegaly") not in unit.facts
        assert corpus.units[example.unit].place == "frontal"
    assert not any(evidence.masks[part][example.unit] for part in PARTS for example in found)


def test_all_kinds_of_silent_units_occur(evidence):
    kinds = {
        e.kind for feature in (IMAGE, EFFUSION, PACEMAKER) for e in evidence.examples("score").find(feature, 40, 5)
    }
    assert kinds == {"on", *SILENT_KINDS}


def test_an_image_is_shown_by_its_view_and_its_report(evidence):
    number = next(n for n, u in enumerate(evidence.corpus.units) if u.place == "frontal")
    shown = show(evidence.corpus, number)
    study = evidence.corpus.studies[evidence.corpus.units[number].study]
    assert shown.text.startswith("[frontal image. Its report: ")
    assert study.findings.split(".")[0] in shown.text
    assert show(evidence.corpus, number, with_images=True).images[0].startswith("data:image/png;base64,")


def test_features_that_are_on_too_rarely_are_left_out(evidence):
    counts = evidence.n_studies_on
    assert counts[PACEMAKER] == len(
        {
            u.study
            for u in evidence.corpus.units
            if "pacemaker" in _concepts(u) and u.place == "findings" and u.study < 240
        }
    )
    assert np.all(counts[evidence.choose_features()] >= 8)


def _concepts(unit) -> set[str]:
    return {fact.value for fact in unit.facts if fact.kind == "concept"}
