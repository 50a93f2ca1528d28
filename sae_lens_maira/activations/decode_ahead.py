"""Opens, hashes and processes images in threads, ahead of the model; Pillow and NumPy release the GIL."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from PIL.Image import Image
from torch import Tensor

from sae_lens_maira.activations.block import SkippedStudy
from sae_lens_maira.activations.plan import EncodedStudy, is_passing_trouble
from sae_lens_maira.data.study import VIEWS, View
from sae_lens_maira.errors import MissingPackageError

if TYPE_CHECKING:
    from sae_lens_maira.hooked import HookedVisionLanguageModel

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")

IMAGE_NAMES: dict[View, str] = {view: view.removesuffix("_frontal") for view in VIEWS}
"""Short names of a study's images, as files use them: ``prior`` for ``prior_frontal``."""

ImageObserver = Callable[[int, Mapping[View, Image]], None]
"""Is called in a thread with each study's index and opened images, which it must not modify."""


@dataclass(frozen=True, eq=False)
class DecodedStudy:
    """A study that is ready for the model.

    Args:
        encoded: the study and its token ids.
        inputs: the model's image inputs.
        images: checksums of its images, by name.
    """

    encoded: EncodedStudy
    inputs: Mapping[str, Tensor]
    images: dict[str, str]


@dataclass(frozen=True)
class _OpenedImage:
    """An image that is already open."""

    image: Image

    def open(self) -> Image:
        return self.image


def decode_study(
    encoded: EncodedStudy, model: HookedVisionLanguageModel, observer: ImageObserver | None = None
) -> DecodedStudy | SkippedStudy:
    """Open and process a study's images.

    Args:
        encoded: the study.
        model: its processor prepares the images.
        observer: is called with the opened images, so that it need not open them again.

    Raises:
        OSError: the machine failed and may recover; a broken or missing image skips the study instead.
    """
    study = encoded.study
    opened: dict[View, Image] = {}
    view: View = VIEWS[0]
    try:
        for view in VIEWS:
            image = getattr(study, view)
            if image is not None:
                opened[view] = image.open()
        hashes = {IMAGE_NAMES[name]: hash_image(image) for name, image in opened.items()}
        images = {name: _OpenedImage(image) for name, image in opened.items()}
        inputs = model.vlm.processor.images(replace(study, **images))
    except MissingPackageError:
        raise
    except (ValueError, OSError, SyntaxError) as error:
        if is_passing_trouble(error):
            raise
        detail = f"{IMAGE_NAMES[view]}: {type(error).__name__}"
        return SkippedStudy(encoded.index, study.study_id, "broken image", detail)
    if observer is not None:
        observer(encoded.index, opened)
    return DecodedStudy(encoded, inputs, hashes)


def hash_image(image: Image) -> str:
    """SHA-256 of an image's mode, size and pixels; the file format makes no difference."""
    digest = hashlib.sha256(f"{image.mode} {image.width} {image.height} ".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def map_ahead(
    executor: Executor, work: Callable[[_Job], _Result], jobs: Iterator[_Job], n_ahead: int
) -> Iterator[tuple[_Job, _Result]]:
    """Yield each job and its result, in order, with up to ``n_ahead`` jobs submitted in advance.

    Args:
        executor: runs the jobs.
        work: the function to run on each job.
        jobs: read lazily.
        n_ahead: jobs submitted before their results are needed; at least 1.
    """
    waiting: deque[tuple[_Job, Future[_Result]]] = deque()
    is_over = False
    while True:
        while not is_over and len(waiting) < n_ahead:
            try:
                job = next(jobs)
            except StopIteration:
                is_over = True
                break
            waiting.append((job, executor.submit(work, job)))
        if not waiting:
            return
        job, future = waiting.popleft()
        yield job, future.result()
