"""Images are opened, hashed and processed in threads, ahead of the model. Pillow and numpy let others run meanwhile."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from typing import TypeVar

from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor

from sae_lens_maira.activations.format import SkippedStudy
from sae_lens_maira.activations.plan import EncodedStudy, is_passing_trouble
from sae_lens_maira.data.study import LazyImage
from sae_lens_maira.errors import MissingPackageError
from sae_lens_maira.maira2.processing import Maira2Processor
from sae_lens_maira.rows.row import study_prompt

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class DecodedStudy:
    """A study that is ready for the model."""

    encoded: EncodedStudy
    pixel_values: Float[Tensor, "n_images 3 height width"]
    images: dict[str, str]
    """Content hashes, by the images' names."""


def decode_study(encoded: EncodedStudy, processor: Maira2Processor) -> DecodedStudy | SkippedStudy:
    """Open and process a study's images.

    Raises:
        OSError: the machine cannot, now; a broken or missing image is a reason to skip.
    """
    study = encoded.study
    opened: dict[str, Image] = {}
    hashes: dict[str, str] = {}
    slots: dict[str, LazyImage | None] = {
        "frontal": study.frontal,
        "lateral": study.lateral,
        "prior": study.prior_frontal,
    }
    name = "frontal"
    try:
        for name, image in slots.items():
            if image is not None:
                opened[name] = image.open()
                hashes[name] = hash_image(opened[name])
        pixel_values = processor.pixel_values([replace(study_prompt(study, "prompt"), **opened)])
    except MissingPackageError:  # a fault of the installation, not of this study
        raise
    except (ValueError, OSError, SyntaxError) as error:
        if is_passing_trouble(error):
            raise
        return SkippedStudy(encoded.index, study.study_id, "broken image", f"{name}: {type(error).__name__}")
    return DecodedStudy(encoded, pixel_values, hashes)


def hash_image(image: Image) -> str:
    """sha256 of an image's mode, size and pixels, whatever file they came from."""
    digest = hashlib.sha256(f"{image.mode} {image.width} {image.height} ".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def map_ahead(
    executor: Executor, work: Callable[[_Job], _Result], jobs: Iterator[_Job], n_ahead: int
) -> Iterator[tuple[_Job, _Result]]:
    """Results in the order of the jobs, with up to ``n_ahead`` of them done or under way before they are asked for.

    Args:
        executor: that does the work.
        work: on one job.
        jobs: read no further than needed.
        n_ahead: at least 1.
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
