"""The one way to open an image, whatever holds it, and every way in which that can fail.

1. A file is read as bytes. What goes wrong here is the path's fault, or the machine's for the moment.
2. The bytes are decoded by DICOM's marker or by Pillow; a file's name says nothing. What goes wrong here is the
   image's fault, and an :class:`~sae_lens_maira.errors.ImageError` names it.
3. The size is known before any pixel is decoded, and has a limit.

So an image ends as pixels, as an ``ImageError``, or as an ``OSError`` with the number of a passing trouble (too many
open files, a lost network drive), and takes at most :data:`MAX_MEMORY` on the way.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

from PIL import Image

from sae_lens_maira.errors import ImageError, MissingImageError, MissingPackageError, UserError

MAX_PIXELS = 1 << 26
"""Largest image in pixels, 8192 x 8192; the largest X-ray detectors have half of it. Below Pillow's own limit."""
MAX_BYTES = 1 << 28
"""Largest image file in bytes: 256 MiB."""
MAX_MEMORY = 3 << 29
"""Most memory in bytes, 1.5 GiB, that one image takes from a file to stretched 8-bit gray."""
DEEP_MODES = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
"""Pillow's modes of more than 8 bits, which its own conversion to 8 bits would clip to white."""

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "GIF", "WEBP", "PPM", "JPEG2000")
_PATH_FAULTS = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EISDIR}


@runtime_checkable
class OpenableImage(Protocol):
    """An image that is opened only when its pixels are needed."""

    def open(self) -> Image.Image: ...


ImageSource: TypeAlias = Image.Image | bytes | str | Path | OpenableImage
"""A PIL image, the contents of an image or DICOM file, the path of one, or something to open."""


def open_image(image: ImageSource, name: str = "image") -> Image.Image:
    """Open an image and decode all of it.

    Args:
        image: of any kind; of several frames the first is taken.
        name: what to call the image in errors, such as ``frontal image``.

    Returns:
        an image that needs its file no more. A DICOM image has mode ``F`` and shows what is meant to be displayed.

    Raises:
        ImageError: there is no such file, or it is broken, too large or no image.
        OSError: the machine cannot read the file now.
        MissingPackageError: it is a DICOM image, and pydicom is not installed.
    """
    if isinstance(image, (str, Path)):
        return decode_image(_read(image, f"{name} '{image}'"), f"{name} '{image}'", image)
    if isinstance(image, bytes):
        return decode_image(image, name)
    if not isinstance(image, Image.Image):
        with _faults_of_the_image(name):
            image = image.open()
    name = name_with_file(image, name)
    with _faults_of_the_image(name, any_fault=True):
        _check_size(image.size, name)
        image.load()
    return image


def decode_image(content: bytes, name: str, file_name: str | Path = "") -> Image.Image:
    """Decode the contents of an image or DICOM file.

    Args:
        content: of the file.
        name: what to call the image in errors.
        file_name: the image's ``filename``, by which later errors name it.

    Raises:
        ImageError, MissingPackageError: as for :func:`open_image`.
    """
    check_n_bytes(len(content), name)
    if content[128:132] == b"DICM":
        from sae_lens_maira.data.dicom import decode_dicom

        image = decode_dicom(content, name)
    else:
        with _faults_of_the_image(name, any_fault=True):
            image = Image.open(BytesIO(content), formats=_FORMATS)
            _check_size(image.size, name)
            image.load()
    image.filename = str(file_name)  # pyright: ignore[reportAttributeAccessIssue]
    return image


def missing_pydicom(name: str) -> MissingPackageError:
    """The error for a DICOM image that cannot be read here."""
    return MissingPackageError(f"Reading the {name} needs pydicom: pip install 'sae-lens-maira[dicom]'.")


def name_with_file(image: Image.Image, name: str) -> str:
    """What to call an image in errors: its name, and its file if it knows it."""
    file_name = str(getattr(image, "filename", "") or "")
    return name if not file_name or file_name in name else f"{name} '{file_name}'"


def check_n_bytes(n_bytes: int, name: str) -> None:
    """Refuse a file that is larger than an image can be.

    Raises:
        ImageError: naming the image.
    """
    if n_bytes > MAX_BYTES:
        raise ImageError(f"The {name} has {n_bytes:,} bytes; the largest that are read have {MAX_BYTES:,}.")


def check_n_pixels(n_pixels: int, name: str) -> None:
    """Refuse an image that has more pixels than an X-ray can have.

    Raises:
        ImageError: naming the image.
    """
    if n_pixels > MAX_PIXELS:
        raise ImageError(
            f"The {name} is too large to decode safely: it has {n_pixels:,} pixels; at most {MAX_PIXELS:,} are read."
        )


def _check_size(size: tuple[int, int], name: str) -> None:
    if min(size) < 1:
        raise ImageError(f"The {name} has no pixels.")
    check_n_pixels(size[0] * size[1], name)


def _read(path: str | Path, name: str) -> bytes:
    try:
        # A named pipe would never end, and a folder is no file.
        status = os.stat(path)  # noqa: PTH116 (unlike Path, it takes a string as it is)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"The {name} is no file.")
        check_n_bytes(status.st_size, name)
        return Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingImageError(f"The {name} does not exist.") from error
    except OSError as error:
        if error.errno in _PATH_FAULTS:
            raise ImageError(f"The {name} cannot be read ({error.strerror}).") from error
        raise
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise ImageError(f"The {name!r} is no path ({error}).") from error


@contextmanager
def _faults_of_the_image(name: str, any_fault: bool = False) -> Iterator[None]:
    """Turn what Pillow raises into one sentence.

    Args:
        name: what to call the image.
        any_fault: nothing but Pillow runs inside, which raises nearly any exception for damaged files; otherwise only
            those are caught that tell of an image.
    """
    try:
        yield
    except (UserError, ImportError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"The {name} is too large to decode safely ({error}).") from error
    except MemoryError as error:
        raise ImageError(f"The {name} needs more memory than there is; it may be damaged.") from error
    except Exception as error:
        is_machines = isinstance(error, OSError) and error.errno not in {None, errno.EINVAL}
        if is_machines or not (any_fault or isinstance(error, (OSError, SyntaxError))):
            raise
        detail = str(error) or type(error).__name__
        raise ImageError(f"The {name} cannot be read ({detail}); it may be cut short or not be an image.") from error
