"""The report grammar: every sentence that a report can contain, and what it says.

The grammar is finite, with a few thousand sentences, so it can be listed: ``sentences(claim)`` gives the wordings of a
claim, and ``meanings()`` maps every wording back. So composing and parsing always agree, and reading a report means
looking up its sentences.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from sae_lens_maira.data.study import Change, Label, Presence
from sae_lens_maira.phantom.words.wording import (
    CLAUSES,
    NORMAL,
    NOUNS,
    REMOVED_NOUNS,
    SECTION_OF,
    SUFFIXES,
    Noun,
    Section,
)
from sae_lens_maira.phantom.world.concepts import CHANGES, CONCEPTS, FAMILIES, VISIBLE


class Claim(NamedTuple):
    """One claim: a visible concept is present or uncertain, perhaps with a change; or a family is gone."""

    subject: str
    """A visible concept, or a family if ``change`` is "removed"."""
    presence: Presence
    change: Change | None

    @property
    def labels(self) -> dict[str, Label]:
        """What the claim says of each concept."""
        members = FAMILIES[self.subject] if self.change == "removed" else (self.subject,)
        return {name: Label(self.presence, self.change) for name in members}


def stem(name: str, side: str | None) -> str:
    """The key of a concept or a family in the word lists, which are shared between sides."""
    return name if side is None else name.replace(f"_{side}", "")


def section(claim: Claim) -> Section:
    """The section in which a claim is made."""
    family = claim.subject if claim.change == "removed" else CONCEPTS[claim.subject].family
    side = CONCEPTS[FAMILIES[family][0]].side
    return SECTION_OF[stem(family, side)]


@cache
def sentences(claim: Claim) -> tuple[str, ...]:
    """Every wording of a claim."""
    if claim.change == "removed":
        return _removed_sentences(claim.subject)
    concept = CONCEPTS[claim.subject]
    key, side = stem(claim.subject, concept.side), concept.side or ""
    nouns = [Noun(noun.article, noun.phrase.format(side=side), noun.plural) for noun in NOUNS[key]]
    clauses = [clause.format(side=side) for clause in CLAUSES[key]]
    statements = []
    for suffix in SUFFIXES[claim.change]:
        if claim.presence == "uncertain":
            statements += [frame + suffix for noun in nouns for frame in _hedged(noun)]
        else:
            statements += [frame + suffix for noun in nouns for frame in _plain(noun)]
            statements += [clause + suffix for clause in clauses]
    if claim.presence == "present" and claim.change is not None:
        statements += [frame for noun in nouns for frame in _changed(noun, claim.change, concept.kind == "device")]
    return tuple(_finish(statement) for statement in statements)


def _finish(statement: str) -> str:
    return f"{statement[0].upper()}{statement[1:]}."


def _with_article(noun: Noun) -> str:
    return f"{noun.article} {noun.phrase}".strip()


def _plain(noun: Noun) -> list[str]:
    be = "are" if noun.plural else "is"
    return [
        f"there {be} {_with_article(noun)}",
        f"{_with_article(noun)} {be} present",
        f"{_with_article(noun)} {be} seen",
    ]


def _hedged(noun: Noun) -> list[str]:
    be = "are" if noun.plural else "is"
    return [
        f"possible {noun.phrase}",
        f"there may be {_with_article(noun)}",
        f"{_with_article(noun)} {be} suspected",
    ]


def _changed(noun: Noun, change: Change, is_device: bool) -> list[str]:
    be, have = ("are", "have") if noun.plural else ("is", "has")
    an = "a " if noun.article else ""
    match change:
        case "new":
            came = "been placed" if is_device else "developed"
            return [
                f"new {noun.phrase}",
                f"there {be} {an}new {noun.phrase}",
                f"{_with_article(noun)} {have} {came} since the prior",
            ]
        case "larger":
            return [f"the {noun.phrase} {have} increased", f"increased {noun.phrase}"]
        case "smaller":
            return [f"the {noun.phrase} {have} decreased", f"decreased {noun.phrase}"]
        case "unchanged":
            return [
                f"unchanged {noun.phrase}",
                f"the {noun.phrase} {be} unchanged",
                f"{_with_article(noun)} {be} again seen",
            ]
        case "removed":
            return []


def _removed_sentences(family: str) -> tuple[str, ...]:
    concept = CONCEPTS[FAMILIES[family][0]]
    statements = []
    for pattern in REMOVED_NOUNS[stem(family, concept.side)]:
        noun = pattern.format(side=concept.side or "")
        gone = (
            ("has been removed", "is no longer in place")
            if concept.kind == "device"
            else ("has resolved", "has cleared since the prior")
        )
        statements += [f"the {noun} {words}" for words in gone]
        statements.append(f"the previously seen {noun} is no longer present")
    return tuple(_finish(statement) for statement in statements)


def _families(keys: tuple[str, ...]) -> tuple[str, ...]:
    """The families, with both sides of each, that keys of the word lists stand for."""
    return tuple(family for family, members in FAMILIES.items() if stem(family, CONCEPTS[members[0]].side) in keys)


class NormalStatement(NamedTuple):
    """A statement that families are absent: its section, its wordings, and the families."""

    section: str
    wordings: tuple[str, ...]
    families: tuple[str, ...]

    @property
    def labels(self) -> dict[str, Label]:
        """What the statement says of each concept."""
        return {name: Label("absent") for family in self.families for name in FAMILIES[family]}


NORMAL_STATEMENTS: tuple[NormalStatement, ...] = tuple(
    NormalStatement(place, tuple(_finish(wording) for wording in wordings), _families(keys))
    for place, wordings, keys in NORMAL
)


def possible_changes(name: str) -> list[Change | None]:
    """The changes that a present concept can have: only concepts with several sizes can be larger or smaller."""
    concept = CONCEPTS[name]
    sizes = (
        {extent for member in FAMILIES[concept.family] for extent in CONCEPTS[member].extents}
        if concept.ordered
        else set()
    )
    larger, smaller = (
        any(size < max(concept.extents) for size in sizes),
        any(size > min(concept.extents) for size in sizes),
    )
    impossible = {"removed"} | ({"larger"} if not larger else set()) | ({"smaller"} if not smaller else set())
    return [None, *(change for change in CHANGES if change not in impossible)]


def all_claims() -> list[Claim]:
    """Every claim that the grammar can make."""
    claims = [Claim(family, "absent", "removed") for family in FAMILIES]
    for name in VISIBLE:
        presences: list[Presence] = ["present", "uncertain"] if CONCEPTS[name].subtle else ["present"]
        claims += [Claim(name, presence, change) for presence in presences for change in possible_changes(name)]
    return claims


def normalize(sentence: str) -> str:
    """The form in which sentences are compared: single spaces, lower case, no final period."""
    return " ".join(sentence.lower().split()).rstrip(".").rstrip()


@cache
def meanings() -> Mapping[str, Mapping[str, Label]]:
    """The inverse of the grammar: from a normalized sentence to what it says.

    Raises:
        ValueError: one sentence has two meanings.
    """
    table: dict[str, Mapping[str, Label]] = {}
    entries = [(claim.labels, sentences(claim)) for claim in all_claims()]
    entries += [(statement.labels, statement.wordings) for statement in NORMAL_STATEMENTS]
    for labels, wordings in entries:
        for wording in wordings:
            if table.setdefault(normalize(wording), labels) != labels:
                raise ValueError(
                    f"the grammar is ambiguous: {wording!r} means {labels} and {table[normalize(wording)]}"
                )
    return table
