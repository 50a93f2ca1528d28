"""Grounded reports: phrases with bounding boxes, read from model output that may be malformed.

The grammar (Bannur et al. 2024, arXiv 2406.04449, section 3) is a sequence of
``<obj>phrase<box><x10><y20><x30><y40></box>...</obj>``. A coordinate is the middle of one of 100 bins of the image's
center-cropped square, so bin b stands for (b + 0.5) / 100.

Two functions read it. :func:`parse_grounded`, for people, keeps what is well formed and describes each problem.
:func:`salvage_grounded`, for scores, keeps every word and counts the tokens that fit nowhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sae_lens_maira.data.study import Box

N_COORDINATE_BINS = 100
GROUNDING_TOKENS: tuple[str, ...] = (
    "<obj>",
    "</obj>",
    "<box>",
    "</box>",
    *(f"<{axis}{bin_}>" for axis in "xy" for bin_ in range(N_COORDINATE_BINS)),
)
"""The special tokens of the grammar, in the order of their ids."""

_TAG = re.compile(r"</?obj>|</?box>")
_STRAY_COORDINATE = re.compile(r"<[xy]\d+>")
_COORDINATES = re.compile(r"\s*<x(\d{1,9})>\s*<y(\d{1,9})>\s*<x(\d{1,9})>\s*<y(\d{1,9})>\s*")
_TOKEN = re.compile(r"</?obj>|</?box>|<[xy]\d{1,2}>")
_OPENED_PHRASE = re.compile(r"<obj>(.*?)(?=</obj>|<obj>|$)", re.DOTALL)
_CLOSED_BOX = re.compile(rf"<box>({_COORDINATES.pattern})</box>")


@dataclass(frozen=True)
class GroundedPhrase:
    """A sentence and the boxes where it can be seen; no boxes if it cannot be located."""

    text: str
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class GroundedReport:
    """The well-formed phrases of a grounded answer, and one sentence per problem in the rest."""

    phrases: tuple[GroundedPhrase, ...]
    problems: tuple[str, ...]

    @property
    def text(self) -> str:
        """The report without its boxes."""
        return " ".join(phrase.text for phrase in self.phrases)


def parse_grounded(text: str) -> GroundedReport:
    """Read a grounded answer; never raises on malformed text.

    A phrase is kept if it is closed and has words. A box is kept if it is closed, has four coordinates in order, each
    from 0 to 99, and does not end before it starts.
    """
    reader = _Reader()
    position = 0
    for tag in _TAG.finditer(text):
        reader.words(text[position : tag.start()])
        reader.tag(tag.group())
        position = tag.end()
    reader.words(text[position:])
    reader.end()
    return GroundedReport(tuple(reader.phrases), tuple(reader.problems))


def format_grounded(phrases: list[GroundedPhrase]) -> str:
    """Write phrases in MAIRA-2's grammar: the inverse of :func:`parse_grounded`, up to the width of a bin."""
    return "".join(f"<obj>{phrase.text}{''.join(_format_box(box) for box in phrase.boxes)}</obj>" for phrase in phrases)


def salvage_grounded(text: str) -> tuple[list[GroundedPhrase], int]:
    """Read every phrase, closed or not; never raises.

    Words outside of phrases are dropped, unless no phrase is opened at all: then the whole text is one phrase. A box
    that ends before it starts is kept: it is well formed, and covers nothing.

    Returns:
        the phrases with their boxes, and the number of grammar tokens that belong to no well-formed box or phrase.
    """
    if "<obj>" not in text:
        return [GroundedPhrase(_TOKEN.sub("", text))], len(_TOKEN.findall(text))
    phrases, n_stray = [], abs(text.count("<obj>") - text.count("</obj>"))
    for phrase in _OPENED_PHRASE.findall(text):
        rest, boxes = _take_boxes(phrase)
        n_stray += len(_TOKEN.findall(rest))
        phrases.append(GroundedPhrase(_TOKEN.sub("", rest), boxes))
    return phrases, n_stray


def _take_boxes(phrase: str) -> tuple[str, tuple[Box, ...]]:
    """A phrase without its well-formed boxes, and the boxes."""
    boxes, rest, position = [], "", 0
    for match in _CLOSED_BOX.finditer(phrase):
        bins = _parse_bins(match[1])
        if not isinstance(bins, str):
            boxes.append(_box(bins))
            rest += phrase[position : match.start()]
            position = match.end()
    return rest + phrase[position:], tuple(boxes)


class _Reader:
    """State of :func:`parse_grounded`: outside, in a phrase, or in a box of a phrase."""

    def __init__(self) -> None:
        self.phrases: list[GroundedPhrase] = []
        self.problems: list[str] = []
        self._text: str | None = None
        self._boxes: list[Box] = []
        self._box_text: str | None = None
        self._has_box = False

    def words(self, words: str) -> None:
        if self._box_text is not None:
            self._box_text += words
            return
        if _STRAY_COORDINATE.search(words):
            self.problems.append(f"Coordinates outside of a box: {_excerpt(words)}.")
            words = _STRAY_COORDINATE.sub("", words)
        if not words.strip():
            return
        if self._text is None:
            self.problems.append(f"Text outside of a phrase: {_excerpt(words)}.")
        elif self._has_box:
            self.problems.append(f"Text after the boxes of a phrase: {_excerpt(words)}.")
        else:
            self._text += words

    def tag(self, tag: str) -> None:
        if tag == "<obj>":
            self._abandon_phrase("a new phrase starts")
            self._text = ""
        elif tag == "</obj>":
            self._close_phrase()
        elif tag == "<box>":
            self._open_box()
        else:
            self._close_box()

    def end(self) -> None:
        self._abandon_phrase("the answer ends")

    def _abandon_phrase(self, reason: str) -> None:
        if self._text is not None:
            self.problems.append(f"The phrase {_excerpt(self._text)} is not closed before {reason}.")
        self._reset()

    def _close_phrase(self) -> None:
        if self._text is None:
            self.problems.append("A phrase is closed that was not opened.")
            return
        self._abandon_box("the phrase ends")
        if self._text.strip():
            self.phrases.append(GroundedPhrase(self._text.strip(), tuple(self._boxes)))
        else:
            self.problems.append("A phrase has no words.")
        self._reset()

    def _open_box(self) -> None:
        if self._text is None:
            self.problems.append("A box is outside of a phrase.")
        self._abandon_box("a new box starts")
        self._box_text = ""
        self._has_box = True

    def _abandon_box(self, reason: str) -> None:
        if self._box_text is not None:
            self.problems.append(f"A box of the phrase {_excerpt(self._text or '')} is not closed before {reason}.")
        self._box_text = None

    def _close_box(self) -> None:
        if self._box_text is None:
            self.problems.append("A box is closed that was not opened.")
            return
        box = _parse_box(self._box_text)
        if isinstance(box, str):
            self.problems.append(f"A box of the phrase {_excerpt(self._text or '')} {box}.")
        elif self._text is not None:
            self._boxes.append(box)
        self._box_text = None

    def _reset(self) -> None:
        self._text, self._boxes, self._box_text, self._has_box = None, [], None, False


def _parse_box(text: str) -> Box | str:
    """The box, or what is wrong with it."""
    bins = _parse_bins(text)
    if isinstance(bins, str):
        return bins
    if bins[0] > bins[2] or bins[1] > bins[3]:
        return f"ends before it starts: {_excerpt(text)}"
    return _box(bins)


def _parse_bins(text: str) -> list[int] | str:
    """The four bins of a box, or what is wrong with them."""
    match = _COORDINATES.fullmatch(text)
    if match is None:
        return f"does not have four coordinates: {_excerpt(text)}"
    bins = [int(digits) for digits in match.groups()]
    if max(bins) >= N_COORDINATE_BINS:
        return f"has a coordinate beyond {N_COORDINATE_BINS - 1}: {_excerpt(text)}"
    return bins


def _box(bins: list[int]) -> Box:
    x_min, y_min, x_max, y_max = ((bin_ + 0.5) / N_COORDINATE_BINS for bin_ in bins)
    return Box(x_min, y_min, x_max, y_max)


def _format_box(box: Box) -> str:
    def bin_of(value: float) -> int:
        return min(max(int(value * N_COORDINATE_BINS), 0), N_COORDINATE_BINS - 1)

    return f"<box><x{bin_of(box.x_min)}><y{bin_of(box.y_min)}><x{bin_of(box.x_max)}><y{bin_of(box.y_max)}></box>"


def _excerpt(text: str, limit: int = 60) -> str:
    text = " ".join(text.split())
    return f"'{text if len(text) <= limit else text[: limit - 3] + '...'}'"
