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

import numpy as np

from sae_lens_maira.activations.format import SkippedStudy
from sae_lens_maira.data.study import Study
from sae_lens_maira.maira2.processing import Maira2Processor
from sae_lens_maira.rows import CompactRow, RowError, RowVocabulary, TokenPolicy, compact_row, encode_study

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


def plan_unit(
    unit: int,
    indices: range,
    studies: Sequence[Study],
    processor: Maira2Processor,
    policy: TokenPolicy,
    vocabulary: RowVocabulary,
    *,
    context_size: int | None,
    max_length: int,
    max_batch_tokens: int,
) -> UnitPlan:
    """Encode a unit's studies and put them into batches.

    Args:
        unit: its number.
        indices: of its studies.
        studies: the source.
        processor: the model's.
        policy: which tokens are kept.
        vocabulary: of the rows.
        context_size: cut rows to so many tokens.
        max_length: tokens of the longest prompt that the model takes.
        max_batch_tokens: see :func:`cut_into_batches`.
    """
    encoded: list[EncodedStudy] = []
    skipped: list[SkippedStudy] = []
    for index in indices:
        found = _encode(index, studies, processor, policy, vocabulary, context_size, max_length)
        (skipped if isinstance(found, SkippedStudy) else encoded).append(found)  # pyright: ignore[reportArgumentType]
    encoded.sort(key=lambda study: (len(study.ids), study.index))
    cuts = cut_into_batches([len(study.ids) for study in encoded], max_batch_tokens)
    return UnitPlan(unit, tuple(tuple(encoded[cut.start : cut.stop]) for cut in cuts), tuple(skipped))


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


def _encode(
    index: int,
    studies: Sequence[Study],
    processor: Maira2Processor,
    policy: TokenPolicy,
    vocabulary: RowVocabulary,
    context_size: int | None,
    max_length: int,
) -> EncodedStudy | SkippedStudy:
    try:
        study = studies[index]
    except (ValueError, OSError, LookupError) as error:
        if is_passing_trouble(error):
            raise
        # The message may quote the study.
        return SkippedStudy(index, None, "unreadable study", type(error).__name__)
    if policy.text == "findings" and not (study.findings or "").strip():
        return SkippedStudy(index, study.study_id, "no findings")
    try:
        ids, kinds = encode_study(study, processor, policy)
    except RowError:
        return SkippedStudy(index, study.study_id, "text that cannot be encoded")
    if len(ids) > max_length:
        return SkippedStudy(index, study.study_id, "too long", f"{len(ids)} tokens, the model takes {max_length}")
    row = compact_row(ids, kinds, policy, vocabulary, index)
    if context_size is not None:
        row = CompactRow(row.tokens[:context_size], row.positions[:context_size], row.kinds[:context_size])
    return EncodedStudy(index, study, ids, row)
