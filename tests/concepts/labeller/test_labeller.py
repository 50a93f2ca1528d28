"""The labeller against sentences read by hand, every sentence of the phantom's grammar, and properties of negation."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens_maira.concepts.labeller.label import label_report
from sae_lens_maira.concepts.labeller.lexicon import LexiconError, packaged_lexicon, read_lexicon
from sae_lens_maira.concepts.labeller.sentences import split_sentences
from sae_lens_maira.data.study import Label
from sae_lens_maira.phantom.source import PhantomSource
from sae_lens_maira.phantom.words.grammar import meanings
from sae_lens_maira.phantom.words.scoring import Scores, positives
from sae_lens_maira.phantom.world.concepts import VISIBLE

PHANTOM, CHEXPERT = packaged_lexicon("phantom"), packaged_lexicon("chexpert")

BY_HAND = {
    "There is a small right pleural effusion.": {"effusion_right_small": Label("present")},
    "Possible left lower lobe consolidation.": {"consolidation_left": Label("uncertain")},
    "Pulmonary edema cannot be excluded.": {"edema": Label("uncertain")},
    "No pneumothorax, small left effusion.": {
        "pneumothorax_right": Label("absent"),
        "pneumothorax_left": Label("absent"),
        "effusion_left_small": Label("present"),
    },
    "The heart is enlarged but there is no edema.": {"cardiomegaly": Label("present"), "edema": Label("absent")},
    "The heart is not enlarged.": {"cardiomegaly": Label("absent")},
    "Right effusion, increased from the prior, with a stable left rib fracture.": {
        "effusion_right_small": Label("present", "larger"),
        "rib_fracture_left": Label("present", "unchanged"),
    },
    "The nasogastric tube has been removed.": {"nasogastric_tube": Label("absent", "removed")},
    "Right basilar atelectasis and effusion.": {
        "atelectasis_right": Label("present"),
        "effusion_right_small": Label("present"),
    },
    "Large bilateral effusions are unchanged.": {
        "effusion_right_large": Label("present", "unchanged"),
        "effusion_left_large": Label("present", "unchanged"),
    },
    "Endotracheal tube tip in the right mainstem bronchus, new since the prior.": {
        "endotracheal_tube_too_low": Label("present", "new")
    },
    "Removal of the right central line and enteric tube.": {
        "central_line_right": Label("absent", "removed"),
        "nasogastric_tube": Label("absent", "removed"),
    },
    "No change in the left nodule.": {"nodule_left": Label("present", "unchanged")},
    "A consolidation without a side.": {},
}


@pytest.mark.parametrize("sentence", BY_HAND)
def test_sentences_mean_what_a_reader_says(sentence: str) -> None:
    assert label_report(sentence, PHANTOM).labels == BY_HAND[sentence]


def test_every_sentence_of_the_grammar_is_read_with_its_presence_and_change() -> None:
    """Positive and removed concepts; what a normal sentence leaves unsaid of other families is not compared."""
    wrong = []
    for sentence, said in meanings().items():
        labels = label_report(f"{sentence}.", PHANTOM).labels
        wanted = {name: label for name, label in said.items() if label.positive or label.change}
        found = {name: label for name, label in labels.items() if label.positive or label.change}
        if wanted != found or any(labels.get(name, Label("absent")).positive for name in set(said) - set(wanted)):
            wrong.append((sentence, wanted, found))
    assert not wrong, f"{len(wrong)} of {len(meanings())}: {wrong[:5]}"


def test_reports_of_a_held_out_seed_are_read_at_an_f1_above_99_percent() -> None:
    scores = Scores()
    source = PhantomSource(200, 117)
    for index in range(len(source)):
        study = source.study(index)
        labels = label_report(study.findings or "", PHANTOM).labels
        assert set(labels) <= set(VISIBLE)
        scores.add(positives(labels), positives(study.labels))
    assert scores.micro_f1 >= 0.99
    assert scores.micro.hits > 300


NAMES = ["pleural effusion", "pneumothorax", "pulmonary edema", "cardiomegaly", "atelectasis"]


@given(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True), st.sampled_from(["or", "and"]))
def test_a_negated_list_is_absent_and_its_denial_is_not(names: list[str], word: str) -> None:
    listed = ", ".join(names[:-1]) + (f" {word} " if names[:-1] else "") + names[-1]
    absent = label_report(f"No {listed}.", PHANTOM).findings
    present = label_report(f"There is {listed}.", PHANTOM).findings
    assert len(absent) == len(names)
    assert {label.presence for label in absent.values()} == {"absent"}
    assert {label.presence for label in present.values()} == {"present"}


@given(st.lists(st.sampled_from(sorted(BY_HAND)), max_size=5))
def test_the_order_of_sentences_does_not_change_what_is_present(sentences: list[str]) -> None:
    report = label_report(" ".join(sentences), PHANTOM)
    shuffled = label_report(" ".join(reversed(sentences)), PHANTOM)
    assert {name: label.presence for name, label in report.labels.items()} == {
        name: label.presence for name, label in shuffled.labels.items()
    }


@settings(max_examples=60)
@given(st.text(max_size=200))
def test_any_text_is_read_and_its_sentences_lie_inside_of_it(text: str) -> None:
    report = label_report(text, PHANTOM)
    assert all(0 <= s.start < s.end <= len(text) for s in report.sentences)
    assert set(report.labels) <= set(VISIBLE)


@given(st.sampled_from(sorted(BY_HAND)))
def test_letter_case_and_white_space_mean_nothing(sentence: str) -> None:
    changed = "\t".join(sentence.upper().split(" "))
    assert label_report(changed, PHANTOM).labels == label_report(sentence, PHANTOM).labels


def test_numbered_lists_and_decimal_points_are_split_as_a_reader_would() -> None:
    text = "A nodule of 1.5 cm. 2. No effusion."
    assert [text[s.start : s.end] for s in split_sentences(text)] == ["A nodule of 1.5 cm.", "2. No effusion."]


def test_chexpert_says_no_finding_unless_something_is_found() -> None:
    normal = label_report("The lungs are clear. A pacemaker is seen.", CHEXPERT).labels
    ill = label_report("Possible pneumonia. There is no pneumothorax.", CHEXPERT).labels
    assert normal["No Finding"].presence == "present"
    assert normal["Support Devices"].presence == "present"
    assert normal["Edema"].presence == "absent"
    assert (ill["No Finding"].presence, ill["Pneumonia"].presence) == ("absent", "uncertain")
    assert ill["Pneumothorax"].presence == "absent"


def test_chexpert_has_its_fourteen_observations() -> None:
    labels = {finding.label for finding in CHEXPERT.findings.values()} - {None}
    assert len(labels | {"No Finding"}) == 14


def test_the_words_of_a_null_label_are_claimed() -> None:
    assert "Pleural Effusion" not in label_report("Large pericardial effusion.", CHEXPERT).labels


def test_a_broken_phrase_list_is_named(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("name: own\nfindings:\n  cyst: {label: Cyst, mentions: [no]}\n")
    with pytest.raises(LexiconError, match="no phrase list.*quotation marks"):
        read_lexicon(tmp_path / "own.yaml")
    (tmp_path / "own.yaml").write_text(
        "name: own\nfindings: {cyst: {label: Cyst, mentions: [cyst*]}}\nstatements: [{absent: [x], phrases: [fine]}]\n"
    )
    with pytest.raises(LexiconError, match="'x', which is no finding"):
        read_lexicon(tmp_path / "own.yaml")


def test_your_own_phrase_list_is_read(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("name: own\nfindings: {cyst: {label: 'Cyst {side}', mentions: [cyst*]}}\n")
    labels = label_report("New cysts in the left lung.", read_lexicon(tmp_path / "own.yaml")).labels
    assert labels == {"Cyst left": Label("present", "new")}
