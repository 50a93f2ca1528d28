"""An exact scorer for reports in the phantom's grammar.

1. `parse_report` reads a report back: each sentence is looked up in the grammar's inverse; one that is not a sentence
   of the grammar is kept as unparsed, not guessed at. Plain and grounded reports are both read, however broken.
2. `Scores` counts, over studies, which positive concepts were said and which were true: micro-F1, and F1 a concept.
   An uncertain finding counts as present, on both sides.
3. `box_ious` compares the boxes of a grounded report with the true ones, concept by concept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from sae_lens_maira.data.study import Box, Change, Label, Presence, SentenceLabel
from sae_lens_maira.phantom.words.grammar import meanings, normalize
from sae_lens_maira.phantom.world.concepts import VISIBLE

_PHRASE = re.compile(r"<obj>(.*?)(?=</obj>|<obj>|$)", re.DOTALL)
_BOX = re.compile(r"<box>\s*<x(\d{1,2})>\s*<y(\d{1,2})>\s*<x(\d{1,2})>\s*<y(\d{1,2})>\s*</box>")
_MARKUP = re.compile(r"</?(?:obj|box)>|<[xy]\d{1,2}>")
_SENTENCE_END = re.compile(r"(?<=\.)\s+")


class Assertion(NamedTuple):
    """One concept as a report speaks of it."""

    concept: str
    presence: Presence
    change: Change | None


@dataclass(frozen=True, slots=True)
class ParsedSentence:
    """A sentence, what it says (nothing if it is not in the grammar), and the boxes that came with it."""

    text: str
    labels: Mapping[str, Label]
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True, slots=True)
class ParsedReport:
    """A report read back. `malformed` counts pieces of grounding markup that belong to no well-formed box or phrase."""

    sentences: tuple[ParsedSentence, ...]
    unparsed: tuple[str, ...]
    malformed: int = 0

    @property
    def assertions(self) -> frozenset[Assertion]:
        return frozenset(
            Assertion(name, *label) for sentence in self.sentences for name, label in sentence.labels.items()
        )

    @property
    def positives(self) -> frozenset[str]:
        """Concepts said to be present, surely or not."""
        return frozenset(name for name, presence, _ in self.assertions if presence != "absent")

    def changes(self) -> dict[str, Change | None]:
        """The change said of each positive concept; the first word counts where a report contradicts itself."""
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
    """Read a plain or a grounded report. Never raises: what is not understood is unparsed, or counted as malformed."""
    malformed = 0
    pieces: list[tuple[str, tuple[Box, ...]]] = []
    if "<obj>" in text:
        for phrase in _PHRASE.findall(text):
            boxes = tuple(_box(match) for match in _BOX.findall(phrase))
            rest = _BOX.sub("", phrase)
            malformed += len(_MARKUP.findall(rest))
            pieces.append((_MARKUP.sub("", rest), boxes))
        malformed += abs(text.count("<obj>") - text.count("</obj>"))
    else:
        malformed += len(_MARKUP.findall(text))
        pieces.append((_MARKUP.sub("", text), ()))

    table, sentences, unparsed = meanings(), [], []
    for piece, boxes in pieces:
        for sentence in _SENTENCE_END.split(piece.strip()):
            if not sentence.strip():
                continue
            labels = table.get(normalize(sentence))
            if labels is None:
                unparsed.append(sentence.strip())
            else:
                sentences.append(ParsedSentence(sentence.strip(), labels, boxes))
    return ParsedReport(tuple(sentences), tuple(unparsed), malformed)


def true_assertions(sentences: Iterable[SentenceLabel]) -> frozenset[Assertion]:
    """What a study's own sentences say, in the form in which a report is read back."""
    return frozenset(Assertion(name, *label) for sentence in sentences for name, label in sentence.labels.items())


def _box(edges: Sequence[str]) -> Box:
    return Box(*((int(edge) + 0.5) / 100 for edge in edges))


@dataclass(slots=True)
class Count:
    """How often a concept was rightly said, wrongly said, and missed."""

    hits: int = 0
    false: int = 0
    missed: int = 0

    @property
    def f1(self) -> float:
        """2 hits / (2 hits + false + missed); nan where there was nothing to find and nothing was said."""
        total = 2 * self.hits + self.false + self.missed
        return 2 * self.hits / total if total else float("nan")


@dataclass(slots=True)
class Scores:
    """F1 of positive visible concepts, added up study by study."""

    counts: dict[str, Count] = field(default_factory=lambda: {name: Count() for name in VISIBLE})

    def add(self, said: Iterable[str], true: Iterable[str]) -> None:
        """Count one study: the concepts that its report says are present, and those that are."""
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
    """The visible concepts that a study's labels call present, surely or not."""
    return frozenset(name for name in VISIBLE if name in labels and labels[name].positive)


def iou(a: Iterable[Box], b: Iterable[Box], *, resolution: int = 200) -> float:
    """Intersection over union of two sets of boxes, each taken as the union of its boxes.

    Measured on a grid of `resolution` cells a side, so exact only for edges at multiples of 1 / resolution; 200 puts
    bin centres, the only edges that a grounded report can give, on cell edges.
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
    """IoU of each concept that truly has boxes; one that the report does not mention, or does not box, scores 0."""
    given = parsed.boxes()
    return {
        name: iou(given.get(name, ()), sentence.boxes)
        for sentence in true
        if sentence.boxes
        for name, label in sentence.labels.items()
        if label.positive
    }
