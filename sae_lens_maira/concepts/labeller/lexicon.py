"""Phrase lists: YAML files of findings and cues, read into compiled patterns.

A phrase matches whole words of a normalized sentence (see ``sentences.py``). ``...`` stands for up to six other words
without a comma, ``a|b`` for one of two words, and ``*`` for any characters of a word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from sae_lens_maira.errors import UserError, quoted
from sae_lens_maira.setting_values import read_yaml

CueKind = Literal["negation", "uncertainty", "new", "larger", "smaller", "unchanged", "removed", "side", "none"]
Place = Literal["before", "after", "anywhere"]
_CHANGES = ("new", "larger", "smaller", "unchanged", "removed")
_PHRASES = Path(__file__).parent / "phrases"
_GAP = r"(?: [^\s,;]+){0,6}?"


class LexiconError(UserError):
    """A phrase list cannot be used; the message names the file and the entry."""


@dataclass(frozen=True)
class Cue:
    """Phrases with one meaning.

    Args:
        kind: what they mean.
        place: where they stand, seen from the mention.
        value: the side of a side.
        pattern: matches any of the phrases.
    """

    kind: CueKind
    place: Place
    value: str
    pattern: re.Pattern[str]


@dataclass(frozen=True)
class Finding:
    """What can be mentioned.

    Args:
        name: its key in the phrase list.
        label: the concept's name, in which ``{side}`` and ``{variant}`` are filled in; None only claims its words.
        mentions: pattern of each phrase that names it.
        variants: pattern of the words that choose a variant, by variant.
        default: the variant without such words.
    """

    name: str
    label: str | None
    mentions: tuple[re.Pattern[str], ...]
    variants: Mapping[str, re.Pattern[str]]
    default: str | None

    @property
    def is_sided(self) -> bool:
        """Whether each side is a concept of its own."""
        return "{side}" in (self.label or "")

    def labels(self, sides: Sequence[str], variant: str | None) -> list[str]:
        """The concepts that a mention stands for; none if a side is needed and not given."""
        if self.label is None:
            return []
        wanted = list(sides) if self.is_sided else [""]
        return [self.label.format(side=side, variant=variant) for side in wanted]


@dataclass(frozen=True)
class Statement:
    """Phrases that say findings are absent without naming them."""

    absent: tuple[str, ...]
    patterns: tuple[re.Pattern[str], ...]


@dataclass(frozen=True)
class Lexicon:
    """A phrase list with the cues.

    Args:
        name: of the set of labels.
        findings: by key.
        statements: of absence.
        cues: everything that changes the meaning of a mention.
        ends: where the reach of a cue ends.
        otherwise: the label of a report with no positive finding, and the labels that do not count for it.
    """

    name: str
    findings: Mapping[str, Finding]
    statements: tuple[Statement, ...]
    cues: tuple[Cue, ...]
    ends: re.Pattern[str]
    otherwise: tuple[str, frozenset[str]] | None


@cache
def packaged_lexicon(name: Literal["phantom", "chexpert"]) -> Lexicon:
    """A phrase list that comes with this package."""
    return read_lexicon(_PHRASES / f"{name}.yaml")


def read_lexicon(path: Path, cues_path: Path = _PHRASES / "cues.yaml") -> Lexicon:
    """Read a phrase list and its cues.

    Raises:
        LexiconError: an entry is missing or of another form.
    """
    values = read_yaml(path)
    cues = read_yaml(cues_path)
    try:
        findings = {str(key): _finding(str(key), entry) for key, entry in values["findings"].items()}
        statements = tuple(
            Statement(tuple(entry["absent"]), tuple(_pattern([phrase]) for phrase in entry["phrases"]))
            for entry in values.get("statements", ())
        )
        other = values.get("otherwise")
        otherwise = None if other is None else (str(other["label"]), frozenset(other["ignoring"]))
        lexicon = Lexicon(str(values["name"]), findings, statements, _cues(cues), _pattern(cues["ends"]), otherwise)
    except (KeyError, TypeError, AttributeError, re.error) as problem:
        raise LexiconError(
            f"'{path}' or '{cues_path}' is no phrase list ({quoted(problem)}); see phrases/phantom.yaml."
        ) from None
    unknown = {name for statement in statements for name in statement.absent} - set(findings)
    if unknown:
        raise LexiconError(f"'{path}' has a statement about {quoted(sorted(unknown)[0])}, which is no finding in it.")
    return lexicon


def _finding(name: str, entry: Mapping[str, Any]) -> Finding:
    variants = dict(entry.get("variants", {}))
    default = variants.pop("default", None)
    label = entry["label"]
    if label is not None:
        label.format(side="", variant="")
    return Finding(
        name,
        label,
        tuple(_pattern([phrase]) for phrase in entry["mentions"]),
        {str(variant): _pattern(phrases) for variant, phrases in variants.items()},
        default,
    )


def _cues(values: Mapping[str, Any]) -> tuple[Cue, ...]:
    found: list[Cue] = []
    groups = {"negation": values["negation"], "uncertainty": values["uncertainty"]}
    groups |= {change: values["change"][change] for change in _CHANGES}
    for kind, places in groups.items():
        for place in ("before", "after"):
            found += [Cue(kind, place, "", _pattern([phrase])) for phrase in places[place]]  # pyright: ignore[reportArgumentType]
    for side, phrases in values["sides"].items():
        found += [Cue("side", "anywhere", str(side), _pattern([phrase])) for phrase in phrases]
    found += [Cue("none", "anywhere", "", _pattern([phrase])) for phrase in values["none"]]
    return tuple(found)


def _pattern(phrases: Sequence[str]) -> re.Pattern[str]:
    """The pattern of any of some phrases, as whole words."""
    return re.compile(rf"(?<!\S)(?:{'|'.join(_expression(phrase) for phrase in phrases)})(?!\S)")


def _expression(phrase: Any) -> str:
    if not isinstance(phrase, str):
        raise TypeError(f"{phrase} is no text; put it between quotation marks")
    expression = ""
    for word in phrase.lower().replace(",", " , ").split():
        if word == "...":
            expression += _GAP
            continue
        options = [re.escape(option).replace(r"\*", r"\S*") for option in word.split("|")]
        expression += (" " if expression else "") + (f"(?:{'|'.join(options)})" if len(options) > 1 else options[0])
    return expression
