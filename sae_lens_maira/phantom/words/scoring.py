"""An exact scorer for reports in the phantom's grammar.

1. ``parse_report`` reads a plain or grounded report back by looking up each sentence in the grammar's inverse. It never
   guesses: a sentence that is not in the grammar is kept as unparsed.
2. ``Scores`` counts, over studies, which positive concepts were reported and which were true: micro-F1, and F1 per
   concept. An uncertain finding counts as present on both sides.
3. ``box_ious`` compares the boxes of a grounded report with the true ones, concept by concept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from sae_lens_maira.data.study import Box, Change, Label, Presence, SentenceLabel
from sae_lens_maira.phantom.words.grammar import meanings, normalize
from sae_lens_maira.phantom.world.concepts import VISIBLE

_SENTENCE_END = re.compile(r"(?<=\.)\s+")


class Assertion(NamedTuple):
    """What a report says of one concept."""

    concept: str
    presence: Presence
    change: Change | None


@dataclass(frozen=True, slots=True)
class ParsedSentence:
    """A sentence of the grammar, what it says, and its boxes."""

    text: str
    labels: Mapping[str, Label]
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True, slots=True)
class ParsedReport:
    """A report read back.

    Args:
        sentences: the sentences of the grammar.
        unparsed: all other sentences.
        malformed: number of grounding tokens that belong to no well-formed box or phrase.
    """

    sentences: tuple[ParsedSentence, ...]
    unparsed: tuple[str, ...]
    malformed: int = 0

    @property
    def assertions(self) -> frozenset[Assertion]:
        """Everything that the report says."""
        return frozenset(
            Assertion(name, *label) for sentence in self.sentences for name, label in sentence.labels.items()
        )

    @property
    def positives(self) -> frozenset[str]:
        """Concepts that the report calls present or uncertain."""
        return frozenset(name for name, presence, _ in self.assertions if presence != "absent")

    def changes(self) -> dict[str, Change | None]:
        """The change of each positive concept; if a report contradicts itself, the first statement counts."""
        said: dict[str, Change | None] = {}
        for sentence in self.sentences:
            for name, label in sentence.labels.items():
                if label.positive:
                    said.setdefault(name, label.change)
        return said

    def boxes(self) -> dict[str, tuple[Box, ...]]:
        """All boxes given for each positive concept."""
        given: dict[str, tuple[Box, ...]] = {}
        for sentence in self.sentences:
            for name, label in sentence.labels.items():
                if label.positive:
                    given[name] = given.get(name, ()) + sentence.boxes
        return given


def parse_report(text: str) -> ParsedReport:
    """Read a plain or a grounded report; never raises. Other text is kept as unparsed or counted as malformed."""
    from sae_lens_maira.maira2.grounding import salvage_grounded  # its package imports torch

    phrases, n_stray = salvage_grounded(text)
    table, sentences, unparsed = meanings(), [], []
    for phrase in phrases:
        for sentence in _SENTENCE_END.split(phrase.text.strip()):
            if not sentence.strip():
                continue
            labels = table.get(normalize(sentence))
            if labels is None:
                unparsed.append(sentence.strip())
            else:
                sentences.append(ParsedSentence(sentence.strip(), labels, phrase.boxes))
    return ParsedReport(tuple(sentences), tuple(unparsed), n_stray)


def true_assertions(sentences: Iterable[SentenceLabel]) -> frozenset[Assertion]:
    """What a study's own sentences say, in the form of :attr:`ParsedReport.assertions`."""
    return frozenset(Assertion(name, *label) for sentence in sentences for name, label in sentence.labels.items())


@dataclass(slots=True)
class Count:
    """True positives, false positives and false negatives of one concept."""

    hits: int = 0
    false: int = 0
    missed: int = 0

    @property
    def f1(self) -> float:
        """2 hits / (2 hits + false + missed); nan if all are 0."""
        total = 2 * self.hits + self.false + self.missed
        return 2 * self.hits / total if total else float("nan")


@dataclass(slots=True)
class Scores:
    """F1 of the positive visible concepts, over studies."""

    counts: dict[str, Count] = field(default_factory=lambda: {name: Count() for name in VISIBLE})

    def add(self, said: Iterable[str], true: Iterable[str]) -> None:
        """Count one study: the positive concepts of its report, and those of its labels."""
        said, true = set(said), set(true)
        for name in said | true:
            count = self.counts[name]
            if name in said and name in true:
                count.hits += 1
            elif name in said:
                count.false += 1
            else:
                count.missed += 1

    @property
    def micro(self) -> Count:
        counts = self.counts.values()
        return Count(sum(c.hits for c in counts), sum(c.false for c in counts), sum(c.missed for c in counts))

    @property
    def micro_f1(self) -> float:
        return self.micro.f1

    @property
    def f1_by_concept(self) -> dict[str, float]:
        return {name: count.f1 for name, count in self.counts.items()}


def positives(labels: Mapping[str, Label]) -> frozenset[str]:
    """The visible concepts that a study's labels call present or uncertain."""
    return frozenset(name for name in VISIBLE if name in labels and labels[name].positive)


def iou(a: Iterable[Box], b: Iterable[Box], *, resolution: int = 200) -> float:
    """Intersection over union of two regions, each the union of its boxes.

    It is measured on a grid of ``resolution`` x ``resolution`` cells, so it is exact only for edges at multiples of
    1 / resolution. With 200, bin centers, the only edges that a grounded report can give, lie on cell edges.
    """
    first, second = _cover(a, resolution), _cover(b, resolution)
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 0.0


def _cover(boxes: Iterable[Box], resolution: int) -> np.ndarray:
    grid = np.zeros((resolution, resolution), dtype=bool)
    for box in boxes:
        x_min, y_min, x_max, y_max = (round(edge * resolution) for edge in box)
        grid[max(y_min, 0) : max(y_max, 0), max(x_min, 0) : max(x_max, 0)] = True
    return grid


def box_ious(parsed: ParsedReport, true: Iterable[SentenceLabel]) -> dict[str, float]:
    """IoU of each concept that truly has boxes; 0 for a concept to which the report gives no box."""
    given = parsed.boxes()
    return {
        name: iou(given.get(name, ()), sentence.boxes)
        for sentence in true
        if sentence.boxes
        for name, label in sentence.labels.items()
        if label.positive
    }
