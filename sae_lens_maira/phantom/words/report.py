"""Composing a report: which claims are made, in which words and in which order, with the span of every sentence.

Whatever is present, and whatever is gone since the prior, is always said; which normal findings get a mention is
chance. The order of the sections is chance too; within a section things come in the order of the families, as they do
in a practised dictation. Each choice is drawn from its own seed (the report's, and the name of what it is about), so
that a concept that is added or taken away changes the sentences about it and no others, neither words nor order.
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
    """The findings text of `state` compared with `prior`, and what each of its sentences says.

    `boxes` says where each present concept is on the frontal image; without it no sentence has boxes.
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

    text, labelled = "", []
    for _, wording, labels, where in spoken:
        start = len(text) + (1 if text else 0)
        text = f"{text} {wording}" if text else wording
        labelled.append(SentenceLabel(start, start + len(wording), labels, where))
    return text, tuple(labelled)


def grounded_text(findings: str, labelled: tuple[SentenceLabel, ...]) -> str:
    """The report in MAIRA-2's grounded form: `<obj>sentence<box><x10><y20><x30><y40></box></obj>` a sentence."""
    return "".join(
        f"<obj>{findings[s.start : s.end]}{''.join(box_tokens(box) for box in s.boxes)}</obj>" for s in labelled
    )


def box_tokens(box: Box) -> str:
    """A box as coordinate tokens. Bin b of 100 stands for (b + 0.5) / 100, so that the edge 1.0 falls into bin 99."""
    x_min, y_min, x_max, y_max = (min(99, max(0, int(edge * 100))) for edge in box)
    return f"<box><x{x_min}><y{y_min}><x{x_max}><y{y_max}></box>"


def _rank(labels: Mapping[str, Label]) -> int:
    """The place of a sentence within its section."""
    return min(VISIBLE.index(name) for name in labels)


def _chance(seed: int, about: str) -> np.random.Generator:
    return np.random.default_rng([seed, *about.encode()])


def _normal_statements(truth: Mapping[str, Label], seed: int) -> list[tuple[str, str, Mapping[str, Label]]]:
    """The normal findings worth a mention: drawn by chance, said only where true, each thing at most once."""
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
