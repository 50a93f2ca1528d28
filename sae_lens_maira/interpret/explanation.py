"""An explanation of a feature: one sentence, its structured form, and the rule behind it if there is one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from sae_lens_maira.errors import printable
from sae_lens_maira.interpret.facts import Fact, FactKind, Rule

Author: TypeAlias = Literal["rule", "model", "table", "control"]
Polarity: TypeAlias = Literal["present", "absent", "any"]
LONGEST = 400
"""Characters of an explanation; what a model writes beyond them is cut."""


@dataclass(frozen=True)
class Explanation:
    """What a feature stands for.

    Args:
        text: one sentence that is true of the places where the feature fires; empty for the empty control.
        author: who wrote it.
        concept: what it is about; None if it is about no single concept.
        side: left, right or bilateral.
        change: compared with the prior.
        section: where in a study it fires.
        polarity: whether the concept is said to be present or absent.
        rule: facts that say the same, for a judge that cannot err; None if none is known.
    """

    text: str
    author: Author
    concept: str | None = None
    side: str | None = None
    change: str | None = None
    section: str | None = None
    polarity: Polarity = "any"
    rule: Rule | None = None


_VIEWS = {"frontal": "A frontal image", "lateral": "A lateral image", "prior_frontal": "A prior image"}
_CHANGES = {
    "new": "is new",
    "larger": "has increased since the prior",
    "smaller": "has decreased since the prior",
    "unchanged": "is unchanged since the prior",
    "removed": "is gone since the prior",
}


def explanation_of(rule: Rule, author: Author = "rule") -> Explanation:
    """The explanation that a rule is, as a sentence of plain words."""
    by_kind: dict[FactKind, list[str]] = {}
    for kind, value in rule:
        by_kind.setdefault(kind, []).append(value)
    named = [*by_kind.get("concept", []), *by_kind.get("finding", []), *by_kind.get("label", [])]
    absent, side = by_kind.get("absent", []), _first(by_kind, "side")
    return Explanation(
        text=_sentence(by_kind),
        author=author,
        concept=(named or absent or [None])[0],
        side=side,
        change=_first(by_kind, "change"),
        section=_first(by_kind, "section"),
        polarity="absent" if absent and not named else ("present" if named else "any"),
        rule=tuple(sorted(rule)),
    )


def cleaned(text: str) -> str:
    """A text of a model or a table as one line of printable characters that is not too long."""
    line = re.sub(r"\s+", " ", text).strip()
    return printable(line[:LONGEST])


def readable(name: str) -> str:
    """A label's name in words: ``effusion_left_small`` is ``small left effusion``."""
    if "/" in name:
        heading, *rest = name.split("/")
        return f"{heading} ({', '.join(rest)})".lower()
    words = name.split("_")
    leading = [word for word in words if word in ("small", "large")] + [
        word for word in words if word in ("left", "right")
    ]
    rest = [word for word in words if word not in leading]
    if words[0] in ("indication", "technique", "comparison") and len(words) > 1:
        return f"{words[0]}: {' '.join(words[1:])}"
    return " ".join([*leading, *rest])


def _sentence(facts: dict[FactKind, list[str]]) -> str:
    section = _first(facts, "section")
    place = None if section is None else f"the {section.replace('_', ' ')}"
    claims = _claims(facts)
    words = [f"contains the word '{word}'" for word in facts.get("word", [])]
    says = [f"says that {_and(claims)}"] if claims else []
    body = " and ".join([*says, *words])
    if section in _VIEWS:
        return f"{_VIEWS[section]}{f' of a study in which {_and(claims)}' if claims else ''}."
    if not body:
        return f"Any text in {place}." if place else "Any text."
    return f"A sentence{f' of {place}' if place else ''} that {body}."


def _claims(facts: dict[FactKind, list[str]]) -> list[str]:
    side, size, change = (_first(facts, kind) for kind in ("side", "size", "change"))
    named = [*facts.get("concept", []), *facts.get("finding", [])]
    uncertain = "uncertain" in facts.get("presence", [])
    claims: list[str] = []
    for name in named:
        words = readable(name)
        extra = [word for word in (size, side) if word and word not in words.split()]
        claims.append(f"{' '.join([*extra, words])} {_be(words)} {'possible' if uncertain else 'present'}")
    if not named and (side or size):
        what = "something" if not facts.get("absent") else "what is named"
        claims.append(f"{what} is {' and '.join(word for word in (size, f'on the {side}' if side else None) if word)}")
    if not named and uncertain:
        claims.append("a finding is only possible")
    if not named and not uncertain and not (side or size) and "present" in facts.get("presence", []):
        claims.append("a finding is present")
    claims += [f"there {_be(readable(name))} no {readable(name)}" for name in facts.get("absent", [])]
    if change:
        claims.append(f"{'it' if named else 'something'} {_CHANGES[change]}")
    claims += [f"the study shows {readable(name)}" for name in facts.get("label", [])]
    return claims


def _be(words: str) -> str:
    return "are" if re.search(r"[^is]s$", words) else "is"


def _and(parts: list[str]) -> str:
    return " and ".join(parts)


def _first(facts: dict[FactKind, list[str]], kind: FactKind) -> str | None:
    return facts[kind][0] if facts.get(kind) else None


def rule_text(rule: Rule | None) -> str:
    """A rule as a table keeps it: ``finding: effusion & side: left``; empty for None."""
    return " & ".join(str(fact) for fact in rule or ())


def parse_rule(text: str) -> Rule | None:
    """The inverse of :func:`rule_text`."""
    if not text:
        return None
    pairs = [part.split(": ", 1) for part in text.split(" & ")]
    return tuple(Fact(kind, value) for kind, value in pairs)  # pyright: ignore[reportArgumentType]
