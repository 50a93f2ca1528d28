"""Studies that cannot be trained on: each is left out with its id and reason, up to a share of all studies."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_maira.errors import SourceError, StudyImageError, printable

if TYPE_CHECKING:
    from sae_lens_maira.hooked import HookedVisionLanguageModel

logger = logging.getLogger(__name__)


class TooManySkipped(SourceError):
    """More studies than allowed have images that cannot be used; the message says how many, and how to go on."""


class SkippedStudies:
    """Studies whose images turned out to be unusable.

    Args:
        n_studies: number of studies, of which a share may be skipped.
        max_share: that share.
    """

    def __init__(self, n_studies: int, max_share: float) -> None:
        self._n_studies, self._max_share = n_studies, max_share
        self._indices: set[int] = set()

    def add(self, error: StudyImageError) -> None:
        """Skip a study from now on, and log its id and the reason."""
        if error.index not in self._indices:
            self._indices.add(error.index)
            logger.warning("Study %s is left out: %s", printable(error.study_id), printable(error.problem))

    def keep(self, indices: Int[Tensor, " n_rows"]) -> Bool[Tensor, " n_rows"]:
        """Mask of the studies that are not skipped."""
        return ~torch.isin(indices, self.state())

    def check(self) -> None:
        """Stop if there is too much to skip.

        Raises:
            TooManySkipped: more than the allowed share is skipped, or no study is left.
        """
        n_skipped = len(self._indices)
        if n_skipped > self._max_share * self._n_studies or 0 < n_skipped == self._n_studies:
            raise TooManySkipped(
                f"{n_skipped} of {self._n_studies} studies have images that cannot be used, and max_skipped_share is "
                f"{self._max_share:g}; mend the images, or pass --resume with a higher --max_skipped_share."
            )

    def state(self) -> Int[Tensor, " n_skipped"]:
        """The indices of the skipped studies."""
        return torch.tensor(sorted(self._indices), dtype=torch.long)

    def restore(self, state: Int[Tensor, " n_skipped"]) -> None:
        """Go on with the studies that an interrupted run had skipped."""
        self._indices = set(state.tolist())


def usable_studies(
    model: HookedVisionLanguageModel, indices: Sequence[int], n_wanted: int, max_skipped_share: float
) -> list[int]:
    """The first studies whose images can be used; each is opened once.

    Args:
        model: bound to the studies.
        indices: the studies to choose from, in order.
        n_wanted: stop when so many are found.
        max_skipped_share: largest share of ``indices`` that may be skipped.

    Raises:
        TooManySkipped: more cannot be used.
    """
    skipped = SkippedStudies(len(indices), max_skipped_share)
    found: list[int] = []
    for index in tqdm(indices, desc="opening held-out images", delay=2, leave=False):
        if len(found) == n_wanted:
            break
        try:
            model.reader.images(index)
        except StudyImageError as error:
            skipped.add(error)
            skipped.check()
        else:
            found.append(index)
    return found
