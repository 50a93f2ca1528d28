"""The one type that every source of studies yields: ``Study``.

A study is what a radiologist has on the desk: the current images, perhaps a prior one, the request, and (for training
and for checking) the report and what is known to be true. Sources differ in what they know. The phantom knows
everything; a folder of files may know only the images. Whatever is unknown is None or empty, never guessed.

Images are opened lazily, because a data set is a list of thousands of studies that are looked at one at a time:
anything with ``.open() -> PIL.Image.Image`` is an image. Nothing here imports torch, numpy or Pillow until an image is
opened.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, get_args, runtime_checkable

if TYPE_CHECKING:
    from PIL.Image import Image

Presence = Literal["present", "uncertain", "absent"]
Change = Literal["new", "larger", "smaller", "unchanged", "removed"]
View = Literal["frontal", "lateral", "prior_frontal"]
VIEWS: tuple[View, ...] = get_args(View)
"""Names of a study's images, in the order in which a prompt shows them."""
SectionName = Literal["indication", "technique", "comparison", "prior_report", "findings"]
SECTIONS: tuple[SectionName, ...] = get_args(SectionName)
"""Names of a study's texts, in the order in which a prompt shows them."""


_SURROGATE = re.compile("[\ud800-\udfff]")


class TokenKind(IntEnum):
    """What a token of a prompt is. The values are stored on disk: never renumber them."""

    TEMPLATE = 0
    """System sentence, roles, task wording, begin of sequence: the same in every prompt."""
    INDICATION = 1
    TECHNIQUE = 2
    COMPARISON = 3
    PRIOR_REPORT = 4
    PHRASE = 5
    """The finding to locate, in phrase grounding."""
    FINDINGS = 6
    """The report: given as assistant text, or generated."""
    END = 7
    """End of sequence after the report."""
    PAD = 8
    FRONTAL_IMAGE = 9
    LATERAL_IMAGE = 10
    PRIOR_IMAGE = 11


IMAGE_KINDS = (TokenKind.FRONTAL_IMAGE, TokenKind.LATERAL_IMAGE, TokenKind.PRIOR_IMAGE)
"""Kinds of the image tokens, in the order of :data:`VIEWS`."""
SECTION_KINDS: dict[SectionName, TokenKind] = {name: TokenKind[name.upper()] for name in SECTIONS}
"""The kind of each section's tokens."""


@runtime_checkable
class LazyImage(Protocol):
    """An image that costs nothing until it is opened. Implementations are picklable: worker processes open them."""

    def open(self) -> Image: ...


@dataclass(frozen=True, slots=True)
class FileImage:
    """An image or DICOM file. Every `open` reads the file again, so no file handle outlives the call."""

    path: Path

    def open(self) -> Image:
        from sae_lens_maira.data.image_files import open_image

        return open_image(self.path)


class Box(NamedTuple):
    """A rectangle as fractions (0 to 1) of the image's width and height, top left corner first."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float

    def on_original(self, width: int, height: int) -> Box:
        """Map from the center-cropped square to the whole image that it was cut from.

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
        """Left, upper, right and lower edge in pixels of an image of the given size, in PIL's order."""
        return self.x_min * width, self.y_min * height, self.x_max * width, self.y_max * height


class Label(NamedTuple):
    """What is true, or claimed, of one concept. ``change`` compares with the prior; without a prior it is None."""

    presence: Presence
    change: Change | None = None

    @property
    def positive(self) -> bool:
        """Whether the concept counts as present in a yes-or-no question: an uncertain finding does."""
        return self.presence != "absent"


@dataclass(frozen=True, slots=True)
class SentenceLabel:
    """What one sentence of the findings says: ``findings[start:end]`` is the sentence.

    ``boxes`` show where it can be seen on the current frontal image; a sentence that points at nothing has none.
    """

    start: int
    end: int
    labels: Mapping[str, Label]
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True, slots=True)
class Study:
    """One radiology study: images, request and report sections, and what is known of its contents.

    ``labels`` maps a concept's name to what is true of it; a concept that is not in the mapping is unlabeled, which is
    not the same as absent. ``shareable`` says whether images and text may leave the machine: False unless the source
    allows it.
    """

    study_id: str
    patient_id: str
    frontal: LazyImage
    lateral: LazyImage | None = None
    prior_frontal: LazyImage | None = None
    indication: str | None = None
    technique: str | None = None
    comparison: str | None = None
    prior_report: str | None = None
    findings: str | None = None
    labels: Mapping[str, Label] = field(default_factory=dict, hash=False)
    sentences: tuple[SentenceLabel, ...] = field(default=(), hash=False)
    view: Literal["PA", "AP"] | None = None
    acquired_at: datetime | None = None
    shareable: bool = False

    def __post_init__(self) -> None:
        length = len(self.findings or "")
        for sentence in self.sentences:
            if not 0 <= sentence.start < sentence.end <= length:
                span = f"{sentence.start}:{sentence.end}"
                raise ValueError(
                    f"study {self.study_id}: sentence span {span} lies outside of findings of {length} characters"
                )

    @property
    def images(self) -> dict[View, LazyImage]:
        """The images that the study has, in the order of :data:`VIEWS`."""
        return {view: image for view in VIEWS if (image := getattr(self, view)) is not None}

    @property
    def texts(self) -> dict[SectionName, str]:
        """The sections that the study has and that are not empty, in the order of :data:`SECTIONS`."""
        return {name: text for name in SECTIONS if (text := getattr(self, name))}

    @property
    def unwritable(self) -> str | None:
        """The first of its texts or ids that cannot be written as UTF-8, by name; None if all can."""
        texts = {"study_id": self.study_id, "patient_id": self.patient_id, **self.texts}
        texts |= dict.fromkeys(("name of a label",), "".join(self.labels))
        return next((name for name, text in texts.items() if find_unwritable(text) is not None), None)


def find_unwritable(text: str) -> str | None:
    """The first half of a surrogate pair that stands alone: JSON and Python allow it in a text, UTF-8 does not."""
    found = _SURROGATE.search(text)
    return None if found is None else found[0]
