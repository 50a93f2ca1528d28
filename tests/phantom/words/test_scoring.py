"""The scorer, by hand-computed numbers, and that no text can break it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_lens_maira.data import Box, Label, SentenceLabel
from sae_lens_maira.phantom.words.scoring import Scores, box_ious, iou, parse_report, positives


def test_scores_by_hand() -> None:
    scores = Scores()
    scores.add({"pacemaker", "edema"}, {"pacemaker", "cardiomegaly"})  # hit, false, missed
    scores.add({"pacemaker"}, {"pacemaker"})  # hit
    scores.add(set(), {"edema"})  # missed
    # pacemaker: 2 hits; edema: 1 false, 1 missed; cardiomegaly: 1 missed.
    assert scores.micro_f1 == pytest.approx(2 * 2 / (2 * 2 + 1 + 2))
    assert scores.f1_by_concept["pacemaker"] == 1.0
    assert scores.f1_by_concept["edema"] == 0.0
    assert math.isnan(scores.f1_by_concept["nodule_left"])


def test_iou_by_hand() -> None:
    left, right = Box(0.0, 0.0, 0.5, 1.0), Box(0.25, 0.0, 0.75, 1.0)
    assert iou([left], [right]) == pytest.approx(0.25 / 0.75)
    assert iou([left], [left]) == 1.0
    assert iou([left], [Box(0.5, 0.0, 1.0, 1.0)]) == 0.0
    # Two boxes against the one that covers both: 0.2 + 0.2 of 0.5.
    assert iou([Box(0.0, 0.0, 0.2, 1.0), Box(0.3, 0.0, 0.5, 1.0)], [left]) == pytest.approx(0.8)
    assert iou([], [left]) == 0.0
    assert iou([], []) == 0.0
    # Edges at bin centers are exact.
    assert iou([Box(0.005, 0.005, 0.105, 0.105)], [Box(0.005, 0.005, 0.205, 0.105)]) == pytest.approx(0.5)


def test_a_grounded_report_is_scored_concept_by_concept() -> None:
    parsed = parse_report(
        "<obj>There is a pacemaker.<box><x10><y10><x30><y30></box></obj>"
        "<obj>The heart is enlarged.</obj><obj>No edema.</obj>"
    )
    assert parsed.boxes() == {"pacemaker": (Box(0.105, 0.105, 0.305, 0.305),), "cardiomegaly": ()}
    assert parsed.unparsed == ("No edema.",)
    true = (
        SentenceLabel(0, 1, {"pacemaker": Label("present")}, (Box(0.105, 0.105, 0.305, 0.205),)),
        SentenceLabel(1, 2, {"cardiomegaly": Label("present")}, (Box(0.3, 0.4, 0.7, 0.8),)),
        SentenceLabel(2, 3, {"nodule_left": Label("uncertain")}, (Box(0.6, 0.2, 0.7, 0.3),)),
        SentenceLabel(3, 4, {"edema": Label("absent")}),
    )
    assert box_ious(parsed, true) == {"pacemaker": pytest.approx(0.5), "cardiomegaly": 0.0, "nodule_left": 0.0}


@pytest.mark.parametrize(
    ("text", "malformed", "n_boxes"),
    [
        ("<obj>There is a pacemaker.<box><x1><y2><x3><y4></box></obj>", 0, 1),
        ("<obj>There is a pacemaker.<box><x1><y2><x3></box></obj>", 5, 0),  # two tags and three coordinates left over
        ("<obj>There is a pacemaker.<box><x1><y2><x3><y4></box>", 1, 1),  # never closed
        ("There is a pacemaker.</obj>", 1, 0),
        ("<obj>There is a pacemaker.<obj>The heart is enlarged.</obj>", 1, 0),
    ],
)
def test_broken_markup_is_counted_and_the_rest_is_read(text: str, malformed: int, n_boxes: int) -> None:
    parsed = parse_report(text)
    assert "pacemaker" in parsed.positives
    assert parsed.malformed == malformed
    assert sum(len(boxes) for boxes in parsed.boxes().values()) == n_boxes


def test_case_and_space_do_not_matter_and_unknown_sentences_are_kept() -> None:
    parsed = parse_report("  there is  A pacemaker.   The aorta is tortuous. heart size is within normal limits")
    assert parsed.positives == {"pacemaker"}
    assert parsed.unparsed == ("The aorta is tortuous.",)
    assert ("cardiomegaly", "absent", None) in parsed.assertions


def test_changes_are_those_of_positive_findings_and_the_first_one_counts() -> None:
    parsed = parse_report(
        "New pacemaker. Unchanged pacemaker. The nasogastric tube has been removed. There is cardiomegaly."
    )
    assert parsed.changes() == {"pacemaker": "new", "cardiomegaly": None}


def test_positives_of_labels_leave_out_text_concepts() -> None:
    labels = {"edema": Label("uncertain"), "pacemaker": Label("absent"), "indication_fever": Label("present")}
    assert positives(labels) == {"edema"}


@given(
    st.text()
    | st.lists(
        st.sampled_from(
            ["<obj>", "</obj>", "<box>", "</box>", "<x5>", "<y99>", "<x100>", "There is a pacemaker.", " ", "."]
        )
    ).map("".join)
)
def test_no_text_breaks_the_parser(text: str) -> None:
    parsed = parse_report(text)
    assert parsed.malformed >= 0
    assert all(0.0 < edge < 1.0 for boxes in parsed.boxes().values() for box in boxes for edge in box)
