"""Images as MAIRA-2 was trained on them: 8-bit grey, stretched to the full range.

1. Anything that shows a chest X-ray (PIL image, array, image file, DICOM file) becomes one grey plane of floats.
   8-bit colour goes through PIL's luma, as in the official pipeline; deeper images keep their depth until step 2,
   because PIL's own conversion to 8 bits clips them to white.
2. The plane is stretched: its minimum becomes 0, its maximum 255, fractions are cut off.

For 8-bit images this is the official pipeline to the bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Float
from PIL import Image

from sae_lens_maira.errors import ImageError


@runtime_checkable
class OpenableImage(Protocol):
    """An image that is opened only when its pixels are needed."""

    def open(self) -> Image.Image: ...


ImageLike: TypeAlias = Image.Image | np.ndarray | str | Path | OpenableImage
"""A PIL image, an array (height, width[, channels]), the path of an image or DICOM file, or something to open."""

LUMA: Float[np.ndarray, " colours"] = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in grey: ITU-R 601-2, as in PIL's conversion."""
_DEEP_MODES = {"I", "F", "I;16", "I;16L", "I;16B", "I;16N"}


def to_stretched_grey(image: ImageLike, name: str = "image") -> Image.Image:
    """Convert an image to 8-bit grey, stretched to use 0 to 255.

    Args:
        image: 8-bit, 16-bit or float, grey or colour.
        name: what to call the image in errors, such as ``frontal image``.

    Raises:
        ImageError: the image is broken, constant, empty, of an unknown kind, or holds NaN or infinity.
    """
    plane = _grey_plane(image, name)
    if plane.size == 0:
        raise ImageError(f"The {name} has no pixels.")
    if not np.isfinite(plane).all():
        raise ImageError(f"The {name} holds NaN or infinite values; clean it before use.")
    plane = plane - plane.min()
    brightest = plane.max()
    if brightest == 0:
        raise ImageError(f"The {name} is constant: every pixel has the same value, so there is nothing to see.")
    plane /= brightest
    plane *= 255
    return Image.fromarray(plane.astype(np.uint8))


def _grey_plane(image: ImageLike, name: str) -> Float[np.ndarray, "height width"]:
    if isinstance(image, (str, Path)):
        return _grey_plane_of_file(Path(image), name)
    if isinstance(image, Image.Image):
        return _grey_plane_of_pil(image, name)
    if isinstance(image, np.ndarray):
        return _grey_plane_of_array(image, name)
    if isinstance(image, OpenableImage):
        return _grey_plane_of_pil(image.open(), name)
    raise ImageError(
        f"The {name} is a {type(image).__name__}; expected a PIL image, a numpy array or the path of an image file."
    )


def _grey_plane_of_file(path: Path, name: str) -> Float[np.ndarray, "height width"]:
    name = f"{name} '{path}'"
    if not path.is_file():
        raise ImageError(f"The {name} does not exist.")
    with path.open("rb") as file:
        is_dicom = file.read(132)[128:] == b"DICM"
    if is_dicom or path.suffix.lower() in {".dcm", ".dicom"}:
        from sae_lens_maira.maira2.dicom import read_dicom

        return read_dicom(path, name)
    try:
        with Image.open(path) as image:
            return _grey_plane_of_pil(image, name)
    except Image.DecompressionBombError as error:
        raise ImageError(f"The {name} is too large to decode safely ({error}).") from error
    except OSError as error:
        raise _broken(name, error) from error


def _grey_plane_of_pil(image: Image.Image, name: str) -> Float[np.ndarray, "height width"]:
    filename = getattr(image, "filename", "")
    if filename and str(filename) not in name:
        name = f"{name} '{filename}'"
    try:
        image.load()
    except (OSError, SyntaxError) as error:
        raise _broken(name, error) from error
    deep = image.mode in _DEEP_MODES
    return np.array(image if deep else image.convert("L")).astype(np.float64)


def _grey_plane_of_array(array: np.ndarray, name: str) -> Float[np.ndarray, "height width"]:
    if array.dtype.kind not in "buif":
        raise ImageError(f"The {name} has values of type {array.dtype}; expected integers or floats.")
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    is_colour = array.ndim == 3 and array.shape[-1] in (3, 4)
    if not is_colour and array.ndim != 2:
        raise ImageError(
            f"The {name} has shape {array.shape}; expected (height, width), or (height, width, 3 or 4) for colour."
        )
    if not is_colour:
        return array.astype(np.float64)
    if array.dtype == np.uint8:
        return np.array(Image.fromarray(array[..., :3]).convert("L")).astype(np.float64)
    return array[..., :3].astype(np.float64) @ LUMA


def _broken(name: str, error: Any) -> ImageError:
    return ImageError(f"The {name} cannot be read ({error}); it may be cut short or not be an image.")
