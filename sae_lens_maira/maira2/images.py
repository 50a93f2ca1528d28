"""Images as MAIRA-2 was trained on them: 8-bit gray, stretched to the full range, cropped to the model's square.

1. Anything that shows a chest X-ray (PIL image, array, image file, DICOM file) becomes one gray plane.
   8-bit color is converted by PIL's luma, as in the official pipeline; deeper images keep their depth until step 2,
   because PIL's own conversion to 8 bits clips them to white.
2. The plane is stretched: its minimum becomes 0, its maximum 255, and fractions are truncated.
3. The shorter side is resized to the model's size. The longer side of a strip would become huge, so only the part that
   the center crop keeps is resized.

For 8-bit images the result equals the official pipeline's bit for bit, except that Pillow may round strips differently.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from sae_lens_maira.data.dicom import LUMA
from sae_lens_maira.data.image_files import (
    DEEP_MODES,
    ImageSource,
    check_n_pixels,
    name_with_file,
    open_image,
)
from sae_lens_maira.errors import ImageError

ImageLike: TypeAlias = ImageSource | np.ndarray
"""A PIL image, an array (height, width[, channels]), the path or contents of a file, or something to open."""

_BLOCK = 1 << 20
"""Pixels converted at a time, so that no whole image is copied to float64."""
_STRIP = 8
"""An image is a strip when its longer side is this many times the shorter one; no radiograph is."""


def to_stretched_gray(image: ImageLike, name: str = "image") -> Image.Image:
    """Convert an image to 8-bit gray, stretched to use 0 to 255.

    Args:
        image: an image of 8 bits, 16 bits or floats, in gray or color.
        name: the image's name in errors, such as ``frontal image``.

    Raises:
        ImageError: the image is broken, constant, empty, too large, of an unknown kind, or holds NaN or infinity.
        OSError: the machine cannot read the image's file now.
    """
    if isinstance(image, np.ndarray):
        plane = _plane_of_array(image, name)
    elif isinstance(image, (Image.Image, bytes, str, Path)) or hasattr(image, "open"):
        opened = open_image(image, name)
        name = name_with_file(opened, name)
        plane = np.asarray(opened if opened.mode in DEEP_MODES else _luma(opened, name))
    else:
        raise ImageError(
            f"The {name} is a {type(image).__name__}; expected a PIL image, a numpy array or the path of an image file."
        )
    return Image.fromarray(_stretched(plane, name))


def fit_to_crop(image: Image.Image, image_processor: Any) -> Image.Image:
    """Resize an image as the image processor would, which then leaves its size as it is.

    This resizes one gray channel instead of three equal ones, and only that part of a strip that the center crop keeps.

    Args:
        image: an image in 8-bit gray.
        image_processor: transformers' ``BitImageProcessor``.
    """
    shortest = (image_processor.size or {}).get("shortest_edge")
    if not image_processor.do_resize or not image_processor.do_center_crop or not shortest:
        return image
    size, resample = _resized(image.size, shortest), image_processor.resample
    crop = (image_processor.crop_size["width"], image_processor.crop_size["height"])
    if max(image.size) < _STRIP * min(image.size) or any(c > s for c, s in zip(crop, size, strict=True)):
        return image.resize(size, resample)
    box: list[float] = []
    window: list[int] = []
    for axis in (0, 1):
        scale = image.size[axis] / size[axis]
        start = (size[axis] - crop[axis]) // 2 * scale
        stop = min(start + crop[axis] * scale, float(image.size[axis]))
        margin = math.ceil(4 * max(scale, 1))  # more than the reach of any Pillow filter
        first = max(math.floor(start) - margin, 0)
        window += [first, min(math.ceil(stop) + margin, image.size[axis])]
        box += [start - first, stop - first]
    # Crop first, because Pillow resizes images that are much taller than wide in another order.
    cut = image.crop((window[0], window[2], window[1], window[3]))
    return cut.resize(crop, resample, box=(box[0], box[2], box[1], box[3]))


def _resized(size: tuple[int, int], shortest: int) -> tuple[int, int]:
    """Width and height after transformers' resizing by the shortest edge, which truncates fractions."""
    width, height = size
    short, long = min(size), max(size)
    longest = int(shortest * long / short)
    return (shortest, longest) if width <= height else (longest, shortest)


def _luma(image: Image.Image, name: str) -> Image.Image:
    try:
        return image.convert("L")
    except ValueError as error:
        raise ImageError(f"The {name} has colors of mode {image.mode}, which cannot be converted to gray.") from error


def _plane_of_array(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype.kind not in "buif":
        raise ImageError(f"The {name} has values of type {array.dtype}; expected integers or floats.")
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    is_colour = array.ndim == 3 and array.shape[-1] in (3, 4)
    if not is_colour and array.ndim != 2:
        raise ImageError(
            f"The {name} has shape {array.shape}; expected (height, width), or (height, width, 3 or 4) for color."
        )
    check_n_pixels(array.shape[0] * array.shape[1], name)
    if not is_colour or array.size == 0:
        return array
    if array.dtype == np.uint8:
        return np.asarray(Image.fromarray(np.ascontiguousarray(array[..., :3])).convert("L"))
    plane = np.empty(array.shape[:2], dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        for row, colours in enumerate(array):
            plane[row] = colours[:, :3].astype(np.float64) @ LUMA
    return plane


def _stretched(plane: np.ndarray, name: str) -> np.ndarray:
    """Stretch values of any type to 0 to 255, in float64."""
    if plane.size == 0:
        raise ImageError(f"The {name} has no pixels.")
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = np.float64(plane.min()), np.float64(plane.max())
        brightest = high - low
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError(f"The {name} holds NaN or infinite values; clean it before use.")
    if not np.isfinite(brightest):
        raise ImageError(f"The {name} holds values from {low:.3g} to {high:.3g}, which are too far apart to compare.")
    if brightest == 0:
        raise ImageError(f"The {name} is constant: every pixel has the same value, so there is nothing to see.")
    stretched = np.empty(plane.shape, dtype=np.uint8)
    values, target = np.ascontiguousarray(plane).reshape(-1), stretched.reshape(-1)
    for start in range(0, values.size, _BLOCK):
        block = values[start : start + _BLOCK].astype(np.float64)
        block -= low
        block /= brightest
        block *= 255
        target[start : start + _BLOCK] = block
    return stretched
