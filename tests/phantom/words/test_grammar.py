"""The grammar and its inverse are one thing."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_lens_maira.data import Label
from sae_lens_maira.phantom.words import requests
from sae_lens_maira.phantom.words.grammar import (
    NORMAL_STATEMENTS,
    Claim,
    all_claims,
    meanings,
    possible_changes,
    sentences,
    stem,
)
from sae_lens_maira.phantom.words.scoring import Assertion, parse_report
from sae_lens_maira.phantom.world.concepts import CONCEPTS, FAMILIES, TEXT_ONLY, VISIBLE

CLAIMS = all_claims()


@given(st.sampled_from(CLAIMS), st.data())
def test_every_wording_of_a_claim_is_read_back_as_that_claim(claim: Claim, data: st.DataObject) -> None:
    sentence = data.draw(st.sampled_from(sentences(claim)))
    parsed = parse_report(sentence)
    assert parsed.assertions == {Assertion(name, *label) for name, label in claim.labels.items()}
    assert parsed.unparsed == ()


def test_no_sentence_means_two_things() -> None:
    seen: dict[str, Claim] = {}
    for claim in CLAIMS:
        for sentence in sentences(claim):
            assert seen.setdefault(sentence.lower(), claim) == claim, sentence
    assert len(meanings()) == len(seen) + sum(len(statement.wordings) for statement in NORMAL_STATEMENTS)


def key(name: str) -> str:
    return stem(name, CONCEPTS[name].side)


@pytest.mark.parametrize("name", VISIBLE)
def test_every_visible_concept_has_wordings_that_share_no_single_telling_word(name: str) -> None:
    wordings = sentences(Claim(name, "present", None))
    assert len(set(wordings)) >= 3
    common = set.intersection(*(set(re.findall(r"[a-z]+", wording.lower())) for wording in wordings))
    sided = {"right", "left"}
    # "Tube" or "rib" may stand in every wording, but no word does that is the concept's own, on either side.
    others = [
        wording.lower()
        for other in VISIBLE
        if key(other) != key(name)
        for wording in sentences(Claim(other, "present", None))
    ]
    telling = {word for word in common - sided if not any(re.search(rf"\b{word}\b", text) for text in others)}
    assert telling == set()


@pytest.mark.parametrize("name", TEXT_ONLY)
def test_every_text_concept_has_three_wordings(name: str) -> None:
    section, _, meaning = name.partition("_")
    table = {"indication": requests.INDICATIONS, "technique": requests.TECHNIQUES, "comparison": requests.COMPARISONS}
    assert len(set(table[section][meaning])) >= 3


def test_only_what_has_sizes_can_grow_or_shrink() -> None:
    assert possible_changes("pacemaker") == [None, "new", "unchanged"]
    assert possible_changes("endotracheal_tube_too_low") == [None, "new", "unchanged"]
    assert possible_changes("edema") == [None, "new", "larger", "smaller", "unchanged"]
    assert possible_changes("effusion_left_small") == [None, "new", "smaller", "unchanged"]
    assert possible_changes("effusion_left_large") == [None, "new", "larger", "unchanged"]


def test_normal_statements_deny_both_sides() -> None:
    assert parse_report("No pneumothorax.").assertions == {
        Assertion("pneumothorax_right", "absent", None),
        Assertion("pneumothorax_left", "absent", None),
    }
    lungs = parse_report("The lungs are clear.").sentences[0].labels
    assert lungs["edema"] == Label("absent")
    assert "effusion_left_small" not in lungs


def test_a_family_that_is_gone_is_gone_in_all_its_members() -> None:
    parsed = parse_report("The right pleural effusion has resolved.")
    assert parsed.assertions == {Assertion(name, "absent", "removed") for name in FAMILIES["effusion_right"]}


def test_some_sentences_as_a_reader_would_expect_them() -> None:
    said = set(sentences(Claim("effusion_right_small", "present", "smaller")))
    assert "There is a small right pleural effusion, decreased from the prior." in said
    assert "The small right pleural effusion has decreased." in said
    assert "Left rib fractures are suspected, new from the prior." in sentences(
        Claim("rib_fracture_left", "uncertain", "new")
    )
    assert "There are no support devices." in {w for s in NORMAL_STATEMENTS for w in s.wordings}
