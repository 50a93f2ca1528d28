"""A unit as a judge or an explainer sees it: its section, its text, perhaps with marks, perhaps with images."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass

from sae_lens_maira.data.study import VIEWS, Study, View
from sae_lens_maira.interpret.corpus import Corpus
from sae_lens_maira.interpret.facts import Fact

_LONGEST_TEXT = 600
_IMAGE_SIDE = 448


@dataclass(frozen=True)
class ShownUnit:
    """A unit as a judge sees it.

    Args:
        section: where it stands, with a remark if there is a prior.
        text: a sentence; of an image, its view and the findings of its report.
        facts: what is known of it, for a judge that cannot err.
        images: data URLs, for a model that sees.
    """

    section: str
    text: str
    facts: frozenset[Fact]
    images: tuple[str, ...] = ()

    @property
    def quoted(self) -> str:
        """The text as a JSON string."""
        return json.dumps(self.text, ensure_ascii=False)


def show(corpus: Corpus, number: int, *, with_images: bool = False) -> ShownUnit:
    """A unit of a corpus.

    Args:
        corpus: units.
        number: of the unit.
        with_images: also the image itself, if the unit is one.
    """
    unit = corpus.units[number]
    study = corpus.studies[unit.study]
    remark = " (there is a prior study)" if study.prior_frontal is not None or study.prior_report else ""
    view: View | None = next((view for view in VIEWS if view == unit.place), None)
    section = f"{view.replace('_', ' ')} image" if view else unit.place.replace("_", " ")
    images = (image_url(study, view),) if with_images and view else ()
    return ShownUnit(f"{section}{remark}", plain_text(study, unit.text, view), unit.facts, images)


def plain_text(study: Study, text: str, view: View | None) -> str:
    """A unit's text; an image is described by its view and by what the report says of it."""
    if view is None:
        return text[:_LONGEST_TEXT]
    report = study.prior_report if view == "prior_frontal" else study.findings
    says = f" Its report: {' '.join(report.split())}" if report else ""
    return f"[{view.replace('_', ' ')} image.{says}]"[:_LONGEST_TEXT]


def marked_text(corpus: Corpus, number: int, feature: int) -> str:
    """A unit's text with the tokens that a feature marks between « and »."""
    unit = corpus.units[number]
    if unit.place in VIEWS:
        return f"«{show(corpus, number).text}»"
    pieces, marks = unit.pieces, corpus.marks(number, feature)
    text = ""
    for place, (piece, is_marked) in enumerate(zip(pieces, marks, strict=True)):
        blank = piece[: len(piece) - len(piece.lstrip())]
        opens = is_marked and not (place and marks[place - 1])
        closes = is_marked and not (place + 1 < len(marks) and marks[place + 1])
        text += f"{blank}{'«' if opens else ''}{piece[len(blank) :]}{'»' if closes else ''}"
    section = unit.place.replace("_", " ")
    return f"[{section}] {' '.join(text.split())}"[:_LONGEST_TEXT]


def image_url(study: Study, view: View) -> str:
    """An image of a study as a data URL of a PNG."""
    image = study.images[view].open().convert("L")
    image.thumbnail((_IMAGE_SIDE, _IMAGE_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
