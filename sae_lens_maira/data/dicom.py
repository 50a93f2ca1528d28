"""DICOM radiographs as gray images, through pydicom (the ``dicom`` extra)."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from sae_lens_maira.data.image_files import check_n_pixels, missing_pydicom
from sae_lens_maira.errors import ImageError, UserError

LUMA: Float[np.ndarray, " colours"] = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in gray: ITU-R 601-2, as in PIL's conversion."""
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_MAX_INFLATED = 1 << 26
"""Most bytes of a file that is deflated as a whole, which pydicom inflates at once: twice a large radiograph's."""
_BLOCK = 1 << 20
"""Pixels that are transformed at a time, so that no second copy of an image in float64 is made."""


def decode_dicom(content: bytes, name: str) -> Image.Image:
    """Decode a radiograph as it is meant to be displayed: bright bone on a dark background.

    The modality transform, the VOI window or lookup table and the photometric interpretation are applied
    (DICOM PS3.3, C.11.1, C.11.2 and C.7.6.3.1.2); of several frames the first is taken.

    Args:
        content: of the file.
        name: what to call the image in errors.

    Returns:
        gray, in mode ``F``.

    Raises:
        ImageError: the file is no readable DICOM image.
        MissingPackageError: pydicom is not installed.
    """
    try:
        import pydicom
        from pydicom.pixels.utils import pixel_array
    except ImportError as error:
        raise missing_pydicom(name) from error
    from io import BytesIO

    try:
        _check_inflated_size(content, name)
        dataset: Any = pydicom.dcmread(BytesIO(content))
        check_n_pixels(int(dataset.Rows) * int(dataset.Columns), name)
        photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
        pixels = np.asarray(pixel_array(dataset, index=0))  # colours come as RGB, whatever they are stored as
        plane = _displayed(pixels, dataset) if photometric.startswith("MONOCHROME") else _luma(pixels)
    except UserError:
        raise
    except MemoryError as error:
        raise ImageError(f"The {name} needs more memory than there is; it may be damaged.") from error
    except Exception as error:  # pydicom raises many kinds for damaged files
        detail = str(error) or type(error).__name__
        raise ImageError(f"The {name} cannot be read as DICOM ({detail}).") from error
    if plane is None:
        raise ImageError(f"The {name} has the unsupported photometric interpretation {photometric}.")
    if plane.size == 0:
        raise ImageError(f"The {name} has no pixels.")
    if photometric == "MONOCHROME1":
        np.subtract(plane.max(), plane, out=plane)
    return Image.fromarray(plane)


def _displayed(pixels: np.ndarray, dataset: Any) -> Float[np.ndarray, "height width"] | None:
    """Stored values as displayed ones; None for what is no plane."""
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    if pixels.ndim != 2:
        return None
    plane = np.empty(pixels.shape, dtype=np.float32)
    stored, displayed = np.ascontiguousarray(pixels).reshape(-1), plane.reshape(-1)
    for start in range(0, stored.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        displayed[block] = apply_voi_lut(apply_modality_lut(stored[block], dataset), dataset)
    return plane


def _luma(pixels: np.ndarray) -> Float[np.ndarray, "height width"] | None:
    """Colours as gray; None for what is no RGB."""
    if pixels.ndim != 3 or pixels.shape[-1] != 3:
        return None
    plane = np.empty(pixels.shape[:2], dtype=np.float32)
    colours, gray = np.ascontiguousarray(pixels).reshape(-1, 3), plane.reshape(-1)
    for start in range(0, len(colours), _BLOCK):
        block = slice(start, start + _BLOCK)
        gray[block] = colours[block].astype(np.float64) @ LUMA
    return plane


def _check_inflated_size(content: bytes, name: str) -> None:
    """Refuse a deflated file that would not stay within bounds; one that is not deflated passes."""
    if _DEFLATED not in content:
        return
    # Group 2 starts with its own length, and all after it is deflated.
    start = 144 + int.from_bytes(content[140:144], "little")
    inflater, n_bytes = zlib.decompressobj(-zlib.MAX_WBITS), 0
    waiting = content[start:]
    try:
        while waiting and not inflater.eof:
            n_bytes += len(inflater.decompress(waiting, _BLOCK))
            waiting = inflater.unconsumed_tail
            if n_bytes > _MAX_INFLATED:
                raise ImageError(f"The {name} is too large to decode safely: its inflated content has no end in sight.")
    except zlib.error:
        return  # not deflated after all, or damaged, which pydicom says too
