"""Images of studies as small WebP files, written while the model runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from PIL.Image import Image

from sae_lens_maira.activations.decode_ahead import IMAGE_NAMES
from sae_lens_maira.data.study import VIEWS, LazyImage, Study, View
from sae_lens_maira.errors import ImageError
from sae_lens_maira.maira2.images import to_stretched_gray

logger = logging.getLogger(__name__)

_QUALITY = 80
_EFFORT = 2
"""WebP's effort, from 0 to 6: half the time of the default 4, for 3% more bytes."""


def write_image(image: LazyImage | Image, path: Path, size: int) -> tuple[int, int]:
    """Write an image as 8-bit gray WebP whose longer side has at most ``size`` pixels.

    Returns:
        Width and height.

    Raises:
        ImageError: the image cannot be used.
        OSError: it cannot be read.
    """
    gray = to_stretched_gray(image)
    gray.thumbnail((size, size))
    unfinished = path.with_suffix(".tmp")
    gray.save(unfinished, "WEBP", quality=_QUALITY, method=_EFFORT)
    unfinished.replace(path)
    return gray.size


class ImageWriter:
    """Writes the images of studies: ``images/17-frontal.webp`` for the study at index 17.

    Args:
        folder: the gallery's folder.
        size: largest width or height, in pixels.
        n_threads: threads in the background. Decoding mostly holds Python's global lock, so more threads gain nothing.
    """

    def __init__(self, folder: Path, size: int, n_threads: int = 1) -> None:
        self._folder, self._size = folder / "images", size
        self._folder.mkdir(parents=True, exist_ok=True)
        self._threads = ThreadPoolExecutor(n_threads, thread_name_prefix="images")
        self._sizes: dict[int, dict[View, Future[tuple[int, int]]]] = {}

    def __enter__(self) -> ImageWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._threads.shutdown(wait=True, cancel_futures=kind is not None)

    def add(self, index: int, study: Study) -> None:
        """Open and write a study's images in the background."""
        images: dict[View, LazyImage | None] = {view: getattr(study, view) for view in VIEWS}
        self._sizes[index] = {
            view: self._threads.submit(self._write, index, view, image)
            for view, image in images.items()
            if image is not None
        }

    def add_opened(self, index: int, images: Mapping[View, Image]) -> None:
        """Write images that are already open for the model, before returning, so that none pile up in memory."""
        written: dict[View, Future[tuple[int, int]]] = {}
        for view, image in images.items():
            written[view] = Future()
            try:
                written[view].set_result(self._write(index, view, image))
            except (ImageError, OSError) as error:
                written[view].set_exception(error)
        self._sizes[index] = written

    def written(self, index: int) -> dict[str, tuple[int, int]]:
        """Wait for a study's images; returns width and height by name, without images that cannot be read."""
        found: dict[str, tuple[int, int]] = {}
        for view, future in self._sizes.pop(index, {}).items():
            try:
                found[IMAGE_NAMES[view]] = future.result()
            except (ImageError, OSError) as error:
                logger.warning("The %s image of study %d is left out: %s", view, index, type(error).__name__)
        return found

    def _write(self, index: int, view: View, image: LazyImage | Image) -> tuple[int, int]:
        return write_image(image, self._folder / f"{index}-{IMAGE_NAMES[view]}.webp", self._size)
