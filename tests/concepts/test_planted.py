"""Planted features are found with their concept, and planted leaks are not believed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sae_lens_maira.concepts.choice import choose, p_value, score
from sae_lens_maira.concepts.settings import ConceptSettings, Uncertain
from sae_lens_maira.data.study import Label, TokenKind
from tests.concepts.small_world import KINDS, make_exam, make_segments, make_study, plant

N = 120
SETTINGS = ConceptSettings(n_resamples=200, min_studies=5)
IMAGE = [position for position, kind in enumerate(KINDS) if kind == TokenKind.FRONTAL_IMAGE]
OWN, OTHER = 7, 9
"""A token of the sentence about edema, and one of the sentence about ribs."""


def random_studies(seed: int = 0) -> list:
    """Edema and rib fractures at random, with a change where they are present."""
    rng = np.random.default_rng(seed)
    studies = []
    for index in range(N):
        labels = {}
        for name in ("edema", "rib"):
            present = rng.random() < 0.5
            change = ("new", "unchanged")[int(rng.integers(2))] if present else None
            labels[name] = Label("present" if present else "absent", change)
        studies.append(make_study(index, labels))
    return studies


def found_in(studies, rules, folder: Path, settings: ConceptSettings = SETTINGS, is_choice=None) -> dict:
    """The chosen feature, its choosing and its final AUROC, by question and region."""
    exam = make_exam(studies, settings, is_choice)
    features = plant(studies, rules, folder, exam.segments)
    picks = choose(features, exam)
    return {
        (item.question.name, item.region): (pick.feature, pick.auroc, float(scored.scores.auroc[0]), scored)
        for item, pick, scored in zip(exam.items, picks, score(features, picks, exam), strict=True)
    }


def test_planted_features_are_found_where_they_fire(tmp_path: Path) -> None:
    studies = random_studies()
    noise = np.random.default_rng(1).random((N, len(KINDS)))
    edema, rib = ([study.labels[name].positive for study in studies] for name in ("edema", "rib"))
    rules = [
        lambda study, position: noise[study, position] * 0.5,
        lambda study, position: 1.0 * (edema[study] and position == IMAGE[1]),
        lambda study, position: 1.0 * (rib[study] and position == OTHER),
        lambda study, position: 1.0 * (edema[study] and position == OWN),
    ]
    found = found_in(studies, rules, tmp_path)
    assert found["edema", "images"][:3] == (1, 1.0, 1.0)
    assert found["rib", "findings"][:3] == (2, 1.0, 1.0)
    assert found["edema", "findings"][:3] == (3, 1.0, 1.0)
    # Its own sentence left out, nothing is left of the latents that read the finding's own word.
    for question in ("edema", "rib"):
        assert found[question, "findings_elsewhere"][2] < 0.7
    assert found["rib", "images"][2] < 0.7
    assert p_value(found["edema", "images"][3].scores.auroc) == pytest.approx(1 / 201)
    assert p_value(found["rib", "images"][3].scores.auroc) > 0.02


def test_presence_does_not_leak_into_change(tmp_path: Path) -> None:
    """A perfect detector of presence would have AUROC 0.75 or so for "new" if all studies were asked."""
    studies = random_studies()
    present = np.array([study.labels["edema"].positive for study in studies])
    new = np.array([study.labels["edema"].change == "new" for study in studies])
    rules = [lambda study, position: 1.0 * (present[study] and position == IMAGE[1])]
    areas = present[new][:, None] - present[~new][None].astype(float)
    assert ((areas > 0) + 0.5 * (areas == 0)).mean() > 0.7
    found = found_in(studies, rules, tmp_path)
    assert found["edema: new", "images"][2] == 0.5
    assert found["edema: unchanged", "images"][2] == 0.5
    exam = make_exam(studies, SETTINGS)
    for item in exam.items:
        if item.question.name in ("edema: new", "edema: unchanged"):
            assert (item.asked == present).all()


def test_removal_is_asked_of_studies_with_a_prior_that_do_not_show_the_finding() -> None:
    labels = [
        {"edema": Label("absent", "removed")},
        {"edema": Label("absent")},
        {"edema": Label("present", "new")},
        {"edema": Label("absent")},
    ] * 12
    has_prior = [True, True, True, False] * 12
    studies = [make_study(i, own, has_prior=has_prior[i]) for i, own in enumerate(labels)]
    exam = make_exam(studies, SETTINGS.__class__(min_studies=2, regions=("images",)))
    (item,) = [item for item in exam.items if item.question.name == "edema: removed"]
    assert item.asked.tolist() == [True, True, False, False] * 12
    assert item.positive[item.asked].tolist() == [True, False] * 12


def test_remembered_patients_do_not_score(tmp_path: Path) -> None:
    """A feature that knows patients by heart: perfect where it was chosen, worth nothing on others."""
    rng = np.random.default_rng(3)
    per_patient = rng.random(N // 2) < 0.5
    studies = [
        make_study(index, {"edema": Label("present" if per_patient[index // 2] else "absent")}, f"patient-{index // 2}")
        for index in range(N)
    ]
    exam = make_exam(studies, SETTINGS)
    choosing = {study.patient_id for study, is_choice in zip(studies, exam.is_choice, strict=True) if is_choice}
    scoring = {study.patient_id for study, is_choice in zip(studies, exam.is_choice, strict=True) if not is_choice}
    assert choosing
    assert scoring
    assert not choosing & scoring
    known = [study.patient_id in choosing and study.labels["edema"].positive for study in studies]
    rules = [lambda study, position: 1.0 * (known[study] and position == IMAGE[1])]
    found = found_in(studies, rules, tmp_path / "disjoint")
    assert found["edema", "images"][1:3] == (1.0, 0.5)
    # With every patient in both halves, the same feature would look perfect.
    known_half = [study.labels["edema"].positive for study in studies]
    leaking = [lambda study, position: 1.0 * (known_half[study] and position == IMAGE[1])]
    both = np.arange(N) % 2 == 0
    assert found_in(studies, leaking, tmp_path / "leak", is_choice=both)["edema", "images"][1:3] == (1.0, 1.0)


def test_uncertain_findings_by_setting() -> None:
    labels = [{"edema": Label("present")}, {"edema": Label("uncertain")}, {"edema": Label("absent")}] * 20
    studies = [make_study(index, own) for index, own in enumerate(labels)]
    cases: list[tuple[Uncertain, list[int], list[int]]] = [
        ("positive", [1, 1, 1], [1, 1, 0]),
        ("negative", [1, 1, 1], [1, 0, 0]),
        ("leave_out", [1, 0, 1], [1, 0, 0]),
    ]
    for uncertain, asked, positive in cases:
        exam = make_exam(studies, ConceptSettings(uncertain=uncertain, regions=("images",), min_studies=3))
        item = exam.items[0]
        assert item.asked.tolist() == [bool(value) for value in asked] * 20
        assert (item.positive & item.asked).tolist() == [bool(value) for value in positive] * 20


def test_best_node_of_a_tree(tmp_path: Path) -> None:
    """A latent for "any edema" is matched with the group, one for the left side with the leaf."""
    rng = np.random.default_rng(0)
    studies = []
    for index in range(N):
        left, right = rng.random(2) < 0.35
        sides = (("edema_left", left), ("edema_right", right))
        labels = {name: Label("present" if shown else "absent") for name, shown in sides}
        studies.append(make_study(index, labels))
    settings = ConceptSettings(groups={"edema": ["edema_left", "edema_right"]}, regions=("images",), min_studies=5)
    exam = make_exam(studies, settings)
    anywhere = [any(label.positive for label in study.labels.values()) for study in studies]
    left_side = [study.labels["edema_left"].positive for study in studies]
    rules = [
        lambda study, position: 1.0 * (anywhere[study] and position == IMAGE[0]),
        lambda study, position: 1.0 * (left_side[study] and position == IMAGE[0]),
    ]
    features = plant(studies, rules, tmp_path, exam.segments)
    picks = {exam.items[pick.item].question.name: pick for pick in choose(features, exam)}
    assert (picks["edema"].feature, picks["edema"].auroc) == (0, 1.0)
    assert (picks["edema_left"].feature, picks["edema_left"].auroc) == (1, 1.0)
    assert picks["edema_right"].auroc < 1


def test_segments_are_sentences_and_sections() -> None:
    studies = random_studies()[:4]
    segments = make_segments(studies)
    own = segments.of_token[: len(KINDS)]
    # The study token stands for the frontal image's last token, which is a segment of its own.
    assert segments.sentence[own].tolist() == [0] + [-1] * 4 + [0] * 3 + [1] * 3
    assert segments.n_tokens[own[[0, 2, 3, 5, 8]]].tolist() == [1, 1, 2, 3, 3]
    assert segments.study.tolist() == sorted(segments.study.tolist())
