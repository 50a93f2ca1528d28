"""A contact sheet: a page of studies, each with its images side by side and its report below them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from sae_lens_maira.data.study import VIEWS, Study

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

_INK, _FAINT, _PAPER = 235, 150, 18  # gray levels: a light box, not a page
_MARGIN, _LINE = 8, 13


def contact_sheet(studies: Iterable[Study], *, columns: int = 3, image_side: int = 150, text_lines: int = 8) -> Image:
    """Lay studies out as one 8-bit gray image.

    Args:
        studies: to show, each in a cell with room for one image per view; a missing view stays empty.
        columns: cells per row.
        image_side: of each image, in pixels.
        text_lines: lines of findings per cell; longer text is cut with an ellipsis.
    """
    from PIL import Image, ImageDraw, ImageFont

    shown = list(studies)
    rows = -(-len(shown) // columns)
    cell_width = len(VIEWS) * image_side + (len(VIEWS) + 1) * _MARGIN
    cell_height = image_side + (text_lines + 2) * _LINE + 2 * _MARGIN
    sheet = Image.new("L", (columns * cell_width, rows * cell_height), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for k, study in enumerate(shown):
        left, top = (k % columns) * cell_width + _MARGIN, (k // columns) * cell_height + _MARGIN
        _draw_images(sheet, draw, study, left, top, image_side)
        request = " ".join(part for part in (study.indication, study.technique) if part)
        draw.text((left, top + image_side + _LINE), textwrap.shorten(request, cell_width // 6), _FAINT, font=font)
        lines = textwrap.wrap(study.findings or "", cell_width // 6, max_lines=text_lines, placeholder=" ...")
        for i, line in enumerate(lines):
            draw.text((left, top + image_side + (i + 2) * _LINE), line, _INK, font=font)
    return sheet


def _draw_images(sheet: Image, draw: ImageDraw, study: Study, left: int, top: int, side: int) -> None:
    from PIL import Image, ImageOps

    for column, view in enumerate(VIEWS):
        image, name = study.images.get(view), view.replace("_", " ")
        corner = (left + column * (side + _MARGIN), top)
        if image is None:
            draw.rectangle((*corner, corner[0] + side - 1, corner[1] + side - 1), outline=45)
        else:
            sheet.paste(ImageOps.pad(_to_8_bits(image.open()), (side, side), Image.Resampling.BICUBIC), corner)
        draw.text((corner[0], top + side), name if image is not None else f"no {name}", _FAINT)


def _to_8_bits(image: Image) -> Image:
    """8-bit gray; deeper images, which Pillow would clip to white, are stretched first."""
    from sae_lens_maira.data.image_files import DEEP_MODES

    if image.mode not in DEEP_MODES:
        return image.convert("L")
    extrema: Any = image.getextrema()
    low, high = extrema
    scale = 255 / ((high - low) or 1)
    return image.convert("F").point(lambda value: value * scale - low * scale).convert("L")
