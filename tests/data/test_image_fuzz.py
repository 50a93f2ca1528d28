"""Damaged images of every kind end as pixels or as an ``ImageError``, never otherwise."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sae_lens_maira.errors import ImageError
from sae_lens_maira.maira2 import to_stretched_gray
from tests.data.dicom_files import dicom_file

KINDS = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP", "PPM", "dicom", "deflated dicom")


def sound_file(kind: str, folder: Path) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (24, 24), dtype=np.uint8)
    if kind.endswith("dicom"):
        tags: dict[str, Any] = {"WindowCenter": 100, "WindowWidth": 90, "RescaleSlope": 1, "RescaleIntercept": 0}
        path = dicom_file(folder / "film", pixels.astype(np.uint16), deflated=kind.startswith("deflated"), **tags)
        return path.read_bytes()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def damaged(content: bytes, draw: np.random.Generator) -> bytes:
    """A few bytes flipped, mostly in the first 400, where headers are; sometimes the end cut off."""
    found = bytearray(content)
    header = slice(132, 532) if content[128:132] == b"DICM" else slice(0, 400)
    for _ in range(draw.integers(1, 6)):
        stop = min(header.stop, len(found)) if draw.random() < 0.8 else len(found)
        place = int(draw.integers(min(header.start, stop - 1), stop))
        found[place] = (
            int(draw.integers(0, 256)) if draw.random() < 0.7 else found[place] ^ (1 << int(draw.integers(8)))
        )
    return bytes(found[: int(draw.integers(1, len(found)))] if draw.random() < 0.1 else found)


def outcomes(kind: str, folder: Path, n: int) -> dict[str, int]:
    content, draw = sound_file(kind, folder), np.random.default_rng(sum(kind.encode()))
    found = {"image": 0, "refused": 0}
    for _ in range(n):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                image = to_stretched_gray(damaged(content, draw), "frontal image")
            except ImageError as error:
                found["refused"] += str(error).startswith("The frontal image ")
            else:
                assert np.asarray(image).max() == 255
                found["image"] += 1
    assert sum(found.values()) == n
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_images_end_as_pixels_or_as_a_sentence(tmp_path, kind):
    found = outcomes(kind, tmp_path, 40)
    assert found["refused"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_five_thousand_damaged_images(tmp_path, kind):
    found = outcomes(kind, tmp_path, 5_000 // len(KINDS) + 1)
    assert min(found.values()) > 0
