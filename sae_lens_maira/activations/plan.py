"""Batches of studies of similar length.

A batch depends only on the studies of its block, not on what earlier runs have done. This matters because the last
digits of an activation depend on the other studies in the batch.

1. The texts of a block's studies are tokenized; studies that cannot be used are skipped, and the reason is recorded.
2. The others are sorted by prompt length, and a batch ends where one more study would exceed the token budget.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sae_lens_maira.activations.block import SkippedStudy
from sae_lens_maira.data.study import Study
from sae_lens_maira.errors import RowError
from sae_lens_maira.rows.row import CompactRow

if TYPE_CHECKING:
    from sae_lens_maira.hooked import HookedVisionLanguageModel

# Caused by the machine and not by the study: the next attempt may succeed.
_PASSING_TROUBLE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN}


@dataclass(frozen=True, eq=False)
class EncodedStudy:
    """A study's text as tokens; no image has been opened yet."""

    index: int
    study: Study
    ids: np.ndarray
    """Token ids of the full prompt."""
    row: CompactRow


@dataclass(frozen=True, eq=False)
class BlockPlan:
    """The studies of one block, in batches, and those that cannot be used."""

    batches: tuple[tuple[EncodedStudy, ...], ...]
    skipped: tuple[SkippedStudy, ...]

    @property
    def in_order(self) -> list[EncodedStudy]:
        """All studies that can be used, in the order of the source."""
        return sorted((study for batch in self.batches for study in batch), key=lambda study: study.index)


def is_passing_trouble(error: BaseException) -> bool:
    """Whether an error is caused by the machine and not by the study."""
    return isinstance(error, OSError) and error.errno in _PASSING_TROUBLE


class Planner:
    """Encodes studies and puts them into batches.

    Args:
        model: provides the tokenizer, the token policy and the context length.
        studies: read by index.
        context_size: cut rows to this many tokens; None keeps whole rows.
        max_batch_tokens: padded tokens per forward pass; a study longer than this runs alone.
    """

    def __init__(
        self,
        model: HookedVisionLanguageModel,
        studies: Sequence[Study],
        context_size: int | None,
        max_batch_tokens: int,
    ) -> None:
        self._model, self._studies = model, studies
        self._context_size, self._max_batch_tokens = context_size, max_batch_tokens

    def plan(self, indices: Sequence[int]) -> BlockPlan:
        """The plan of the block that holds the studies at these indices."""
        encoded: list[EncodedStudy] = []
        skipped: list[SkippedStudy] = []
        for index in indices:
            found = self._encode(index)
            (skipped if isinstance(found, SkippedStudy) else encoded).append(found)  # pyright: ignore[reportArgumentType]
        encoded.sort(key=lambda study: (len(study.ids), study.index))
        cuts = cut_into_batches([len(study.ids) for study in encoded], self._max_batch_tokens)
        return BlockPlan(tuple(tuple(encoded[cut.start : cut.stop]) for cut in cuts), tuple(skipped))

    def _encode(self, index: int) -> EncodedStudy | SkippedStudy:
        try:
            study = self._studies[index]
        except (ValueError, OSError, LookupError) as error:
            if is_passing_trouble(error):
                raise
            # The error's message may quote the report.
            return SkippedStudy(index, None, "unreadable study", type(error).__name__)
        if self._model.policy.text == "findings" and not study.findings:
            return SkippedStudy(index, study.study_id, "no findings")
        try:
            ids, row = self._model.reader.encode_study(study, index)
        except RowError:
            return SkippedStudy(index, study.study_id, "text that cannot be encoded")
        max_length = self._model.cfg.n_ctx
        if len(ids) > max_length:
            detail = f"{len(ids)} tokens, the model takes {max_length}"
            return SkippedStudy(index, study.study_id, "too long", detail)
        cut = slice(self._context_size)
        return EncodedStudy(index, study, ids, CompactRow(row.tokens[cut], row.positions[cut], row.kinds[cut]))


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
