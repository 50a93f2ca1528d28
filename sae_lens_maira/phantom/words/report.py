"""Composing a report: which claims are made, in which words and in which order, with the span of every sentence.

Everything that is present, or gone since the prior, is always said. Which normal findings are mentioned is random, and
so is the order of the sections; within a section concepts follow the order of their families. Each choice has its own
random numbers, seeded by the report's seed and the name of what it is about. So adding or removing a concept changes
only the sentences about it, and neither the words nor the order of the others.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sae_lens_maira.data.study import Box, Label, SentenceLabel
from sae_lens_maira.phantom.words.grammar import NORMAL_STATEMENTS, Claim, section, sentences
from sae_lens_maira.phantom.words.wording import SECTION_ORDERS
from sae_lens_maira.phantom.world.concepts import FAMILIES, VISIBLE, State, visible_labels

_MENTION_RATE = {
    "heart": 0.40,
    "lungs": 0.25,
    "pleura": 0.35,
    "bones": 0.15,
    "devices": 0.12,
    "overall": 0.30,
}


def compose(
    state: State, prior: State | None, seed: int, boxes: Mapping[str, tuple[Box, ...]] | None = None
) -> tuple[str, tuple[SentenceLabel, ...]]:
    """The findings of ``state`` compared with ``prior``, and what each of their sentences says.

    Args:
        state: what is visible now.
        prior: what was visible before; None if there is no prior.
        seed: decides words and order.
        boxes: where each present concept is on the frontal image; without them no sentence has boxes.
    """
    truth = visible_labels(state, prior)
    claims = [Claim(name, truth[name].presence, truth[name].change) for name in state]
    gone = [family for family, members in FAMILIES.items() if any(truth[name].change == "removed" for name in members)]
    claims += [Claim(family, "absent", "removed") for family in gone]

    order = SECTION_ORDERS[int(_chance(seed, "order").integers(len(SECTION_ORDERS)))]
    spoken: list[tuple[tuple[int, int], str, Mapping[str, Label], tuple[Box, ...]]] = []
    for claim in claims:
        place = (order.index(section(claim)), _rank(claim.labels))
        wordings = sentences(claim)
        wording = wordings[int(_chance(seed, claim.subject).integers(len(wordings)))]
        spoken.append((place, wording, claim.labels, (boxes or {}).get(claim.subject, ())))
    for where, wording, labels in _normal_statements(truth, seed):
        place = (order.index(where) if where in order else len(order), _rank(labels))
        spoken.append((place, wording, labels, ()))
    spoken.sort(key=lambda item: item[0])

    text, labeled = "", []
    for _, wording, labels, where in spoken:
        start = len(text) + (1 if text else 0)
        text = f"{text} {wording}" if text else wording
        labeled.append(SentenceLabel(start, start + len(wording), labels, where))
    return text, tuple(labeled)


def grounded_text(findings: str, labeled: tuple[SentenceLabel, ...]) -> str:
    """The report in MAIRA-2's grounded form, one phrase per sentence."""
    from sae_lens_maira.maira2.grounding import GroundedPhrase, format_grounded  # its package imports torch

    return format_grounded([GroundedPhrase(findings[s.start : s.end], s.boxes) for s in labeled])


def _rank(labels: Mapping[str, Label]) -> int:
    """The sort key of a sentence within its section."""
    return min(VISIBLE.index(name) for name in labels)


def _chance(seed: int, about: str) -> np.random.Generator:
    return np.random.default_rng([seed, *about.encode()])


def _normal_statements(truth: Mapping[str, Label], seed: int) -> list[tuple[str, str, Mapping[str, Label]]]:
    """The normal findings that are mentioned: a random choice of those that are true, each family at most once."""
    rng = _chance(seed, "normal")
    draws = [(float(rng.random()), int(rng.integers(len(statement.wordings)))) for statement in NORMAL_STATEMENTS]
    mentioned: set[str] = set()
    out = []
    for statement, (draw, wording) in zip(NORMAL_STATEMENTS, draws, strict=True):
        if statement.section == "overall":
            continue
        chosen = draw < _MENTION_RATE[statement.section] and mentioned.isdisjoint(statement.families)
        if chosen:
            mentioned.update(statement.families)
            if all(truth[name] == label for name, label in statement.labels.items()):
                out.append((statement.section, statement.wordings[wording], statement.labels))
    overall, (draw, wording) = NORMAL_STATEMENTS[-1], draws[-1]
    is_normal = all(truth[name] == Label("absent") for name in overall.labels)
    if is_normal and (draw < _MENTION_RATE["overall"] or not out):
        out.append(("overall", overall.wordings[wording], overall.labels))
    return out
