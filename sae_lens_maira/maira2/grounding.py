"""Grounded reports: phrases with bounding boxes, read from model output that may be malformed.

The grammar (Bannur et al. 2024, arXiv 2406.04449, section 3) is a sequence of
``<obj>phrase<box><x10><y20><x30><y40></box>...</obj>``. A coordinate is the middle of one of 100 bins of the image's
centre-cropped square.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

N_COORDINATE_BINS = 100

_TAG = re.compile(r"</?obj>|</?box>")
_STRAY_COORDINATE = re.compile(r"<[xy]\d+>")
_COORDINATES = re.compile(r"\s*<x(\d{1,9})>\s*<y(\d{1,9})>\s*<x(\d{1,9})>\s*<y(\d{1,9})>\s*")


@dataclass(frozen=True)
class Box:
    """A rectangle in relative coordinates: 0 is the left or upper edge, 1 the right or lower edge."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float

    def on_original(self, width: int, height: int) -> Box:
        """Map from the centre-cropped square to the whole image that it was cut from.

        Args:
            width: of the original image, in pixels.
            height: of the original image, in pixels.

        Returns:
            the box relative to the original image.
        """
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return Box(
            (self.x_min * side + left) / width,
            (self.y_min * side + top) / height,
            (self.x_max * side + left) / width,
            (self.y_max * side + top) / height,
        )

    def to_pixels(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Left, upper, right and lower edge in pixels of an image of the given size, as PIL orders them."""
        return self.x_min * width, self.y_min * height, self.x_max * width, self.y_max * height


@dataclass(frozen=True)
class GroundedPhrase:
    """A sentence and where it can be seen; no boxes if it cannot be shown."""

    text: str
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class GroundedReport:
    """What is sound in a grounded answer, and one sentence for each thing that is not."""

    phrases: tuple[GroundedPhrase, ...]
    problems: tuple[str, ...]

    @property
    def text(self) -> str:
        """The report without its boxes."""
        return " ".join(phrase.text for phrase in self.phrases)


def parse_grounded(text: str) -> GroundedReport:
    """Read a grounded answer; never raises on malformed text.

    A phrase is kept when its ``<obj>`` is closed and it has words; a box is kept when it is closed, has four
    coordinates in order, each in 0 to 99, and does not end before it starts.
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
            self.problems.append("A box stands outside of a phrase.")
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
    match = _COORDINATES.fullmatch(text)
    if match is None:
        return f"has no four coordinates: {_excerpt(text)}"
    bins = [int(digits) for digits in match.groups()]
    if max(bins) >= N_COORDINATE_BINS:
        return f"has a coordinate beyond {N_COORDINATE_BINS - 1}: {_excerpt(text)}"
    if bins[0] > bins[2] or bins[1] > bins[3]:
        return f"ends before it starts: {_excerpt(text)}"
    x_min, y_min, x_max, y_max = ((bin_ + 0.5) / N_COORDINATE_BINS for bin_ in bins)
    return Box(x_min, y_min, x_max, y_max)


def _format_box(box: Box) -> str:
    def bin_of(value: float) -> int:
        return min(max(int(value * N_COORDINATE_BINS), 0), N_COORDINATE_BINS - 1)

    return f"<box><x{bin_of(box.x_min)}><y{bin_of(box.y_min)}><x{bin_of(box.x_max)}><y{bin_of(box.y_max)}></box>"


def _excerpt(text: str, limit: int = 60) -> str:
    text = " ".join(text.split())
    return f"'{text if len(text) <= limit else text[: limit - 3] + '...'}'"
