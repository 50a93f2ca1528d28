"""Images of studies as small WebP files, drawn in the background while the model runs."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from PIL.Image import Image

from sae_lens_maira.data.study import LazyImage, Study
from sae_lens_maira.errors import ImageError
from sae_lens_maira.maira2.images import to_stretched_grey

logger = logging.getLogger(__name__)

VIEWS = {"frontal": "frontal", "lateral": "lateral", "prior": "prior_frontal"}
"""Names in files, and attributes of a study."""
_QUALITY = 80
_EFFORT = 2
"""WebP's, of 6: half the time of its default 4, for 3% more bytes."""


class SharedImage:
    """An image that the model and the gallery both open, and that is made once: the first one leaves it to the second.

    Args:
        image: to open.
        n_uses: how often it will be wanted at about the same time.
    """

    def __init__(self, image: LazyImage, n_uses: int = 2) -> None:
        self._image, self._n_uses = image, n_uses
        self._lock = threading.Lock()
        self._opened: Image | None = None

    def open(self) -> Image:
        with self._lock:
            opened = self._image.open() if self._opened is None else self._opened
            self._n_uses -= 1
            self._opened = opened if self._n_uses > 0 else None
            return opened.copy()


def with_shared_images(study: Study) -> Study:
    """The same study, each of whose images is made once for two uses."""
    images = {name: getattr(study, name) for name in VIEWS.values()}
    return replace(study, **{name: SharedImage(image) for name, image in images.items() if image is not None})


def write_image(image: LazyImage, path: Path, size: int) -> tuple[int, int]:
    """Write an image as 8-bit grey WebP whose longer side has at most ``size`` pixels.

    Returns:
        width and height.

    Raises:
        ImageError: the image cannot be used.
        OSError: it cannot be read.
    """
    grey = to_stretched_grey(image)
    grey.thumbnail((size, size))
    unfinished = path.with_suffix(".tmp")
    grey.save(unfinished, "WEBP", quality=_QUALITY, method=_EFFORT)
    unfinished.replace(path)
    return grey.size


class ImageWriter:
    """Writes the images of studies in the background: ``images/17-frontal.webp`` for the study at index 17.

    Args:
        folder: of the gallery.
        size: longer side in pixels, at most.
        n_threads: images at a time. Drawing and decoding hold Python's lock, which the model needs between its steps:
            a second thread takes a fifth more time in all.
    """

    def __init__(self, folder: Path, size: int, n_threads: int = 1) -> None:
        self._folder, self._size = folder / "images", size
        self._folder.mkdir(parents=True, exist_ok=True)
        self._threads = ThreadPoolExecutor(n_threads, thread_name_prefix="images")
        self._waiting: dict[int, dict[str, Future[tuple[int, int]]]] = {}

    def __enter__(self) -> ImageWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._threads.shutdown(wait=True, cancel_futures=kind is not None)

    def add(self, index: int, study: Study) -> None:
        """Start to write a study's images."""
        images = {view: getattr(study, attribute) for view, attribute in VIEWS.items()}
        self._waiting[index] = {
            view: self._threads.submit(write_image, image, self._folder / f"{index}-{view}.webp", self._size)
            for view, image in images.items()
            if image is not None
        }

    def written(self, index: int) -> dict[str, tuple[int, int]]:
        """Wait for a study's images: width and height by view; an image that cannot be read is left out."""
        found: dict[str, tuple[int, int]] = {}
        for view, future in self._waiting.pop(index, {}).items():
            try:
                found[view] = future.result()
            except (ImageError, OSError) as error:
                logger.warning("The %s image of study %d is left out: %s", view, index, type(error).__name__)
        return found
