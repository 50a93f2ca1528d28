"""Units of studies, and batches of studies of similar length.

A batch is a function of its unit alone, never of what was done before: the last digits of an activation depend on what
it was batched with.

1. The texts of a unit's studies are encoded; those that cannot be used are skipped, with the reason.
2. The rest is sorted by prompt length, and cut where one more study would exceed the token budget.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sae_lens_maira.activations.config import WriteConfig
from sae_lens_maira.activations.format import SkippedStudy
from sae_lens_maira.data.study import Study
from sae_lens_maira.errors import RowError
from sae_lens_maira.rows.row import CompactRow, compact_row, encode_study

if TYPE_CHECKING:
    from sae_lens_maira.hooked.model import HookedMaira2

# What the machine does, not the study: the next attempt may succeed.
_PASSING_TROUBLE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN}


@dataclass(frozen=True, eq=False)
class EncodedStudy:
    """A study's text as tokens; no image was opened yet."""

    index: int
    study: Study
    ids: np.ndarray
    """Token ids of the full prompt."""
    row: CompactRow


@dataclass(frozen=True, eq=False)
class UnitPlan:
    """A unit of work: batches of studies, and those that cannot be used."""

    unit: int
    batches: tuple[tuple[EncodedStudy, ...], ...]
    skipped: tuple[SkippedStudy, ...]


def is_passing_trouble(error: BaseException) -> bool:
    """Whether an error tells of the machine and not of the study."""
    return isinstance(error, OSError) and error.errno in _PASSING_TROUBLE


class UnitPlanner:
    """Encodes the studies of units and puts them into batches.

    Args:
        model: whose studies, processor and policy they are.
        settings: how to cache.
    """

    def __init__(self, model: HookedMaira2, settings: WriteConfig) -> None:
        self._studies, self._processor, self._policy = model.reader.studies, model.processor, model.policy
        self._vocabulary, self._max_length = model.row_vocabulary, model.cfg.n_ctx
        self._settings = settings

    def plan(self, unit: int, indices: range) -> UnitPlan:
        """The unit of this number, which holds the studies of these indices."""
        encoded: list[EncodedStudy] = []
        skipped: list[SkippedStudy] = []
        for index in indices:
            found = self._encode(index)
            (skipped if isinstance(found, SkippedStudy) else encoded).append(found)  # pyright: ignore[reportArgumentType]
        encoded.sort(key=lambda study: (len(study.ids), study.index))
        cuts = cut_into_batches([len(study.ids) for study in encoded], self._settings.max_batch_tokens)
        return UnitPlan(unit, tuple(tuple(encoded[cut.start : cut.stop]) for cut in cuts), tuple(skipped))

    def _encode(self, index: int) -> EncodedStudy | SkippedStudy:
        try:
            study = self._studies[index]
        except (ValueError, OSError, LookupError) as error:
            if is_passing_trouble(error):
                raise
            # The message may quote the study.
            return SkippedStudy(index, None, "unreadable study", type(error).__name__)
        if self._policy.text == "findings" and not (study.findings or "").strip():
            return SkippedStudy(index, study.study_id, "no findings")
        try:
            ids, kinds = encode_study(study, self._processor, self._policy)
        except RowError:
            return SkippedStudy(index, study.study_id, "text that cannot be encoded")
        if len(ids) > self._max_length:
            detail = f"{len(ids)} tokens, the model takes {self._max_length}"
            return SkippedStudy(index, study.study_id, "too long", detail)
        row = compact_row(ids, kinds, self._policy, self._vocabulary, index)
        cut_at = self._settings.context_size
        return EncodedStudy(
            index, study, ids, CompactRow(row.tokens[:cut_at], row.positions[:cut_at], row.kinds[:cut_at])
        )


def cut_into_batches(lengths: Sequence[int], max_batch_tokens: int) -> list[range]:
    """Cut sequences into batches whose size times their longest length stays within a budget.

    A sequence that exceeds the budget alone is a batch of its own.
    """
    cuts: list[range] = []
    start, longest = 0, 0
    for position, length in enumerate(lengths):
        longest = max(longest, length)
        if position > start and (position - start + 1) * longest > max_batch_tokens:
            cuts.append(range(start, position))
            start, longest = position, length
    if start < len(lengths):
        cuts.append(range(start, len(lengths)))
    return cuts
