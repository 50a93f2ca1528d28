"""Rows as a ``datasets.Dataset``, streamed to disk and reused if the fingerprint of their inputs is the same."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from sae_lens_maira.data.listed import as_source
from sae_lens_maira.data.study import Study, TokenKind
from sae_lens_maira.errors import RowError
from sae_lens_maira.files import default_cache_path, exclusive, from_json, lacks_room
from sae_lens_maira.rows.policy import TokenPolicy
from sae_lens_maira.rows.row import CompactRow, RowVocabulary, compact_row, encode_study, smallest_context
from sae_lens_maira.vlm import StudyProcessor

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

_FORMAT_VERSION = 2
_SUMMARY = "summary.json"


@dataclass(frozen=True)
class RowSummary:
    """Summary of rows, and of what did not fit into them.

    Args:
        n_studies: number of studies, which is the number of rows.
        n_tokens: number of tokens in all rows, without padding.
        longest: number of tokens of the longest row before it was cut.
        tokens_by_kind: number of tokens in all rows, by the name of their kind.
        context_size: length of every row.
        n_cut_studies: number of studies whose rows were cut.
        n_cut_tokens: number of tokens that were cut off.
    """

    n_studies: int
    n_tokens: int
    longest: int
    tokens_by_kind: dict[str, int]
    context_size: int
    n_cut_studies: int
    n_cut_tokens: int

    def describe(self) -> str:
        """A few lines for people."""
        mean = self.n_tokens / max(self.n_studies, 1)
        shares = ", ".join(
            f"{kind} {count / max(self.n_tokens, 1):.1%}"
            for kind, count in sorted(self.tokens_by_kind.items(), key=lambda item: -item[1])
        )
        cut = (
            f"{self.n_cut_tokens} tokens of {self.n_cut_studies} studies were cut off by context_size "
            f"{self.context_size}; {self.longest} would fit all."
            if self.n_cut_tokens
            else f"Nothing was cut off by context_size {self.context_size}; the longest row has {self.longest} tokens."
        )
        return f"{self.n_studies} studies, {self.n_tokens} tokens ({mean:.1f} per study): {shares}.\n{cut}"


@dataclass(frozen=True)
class StudyRows:
    """Rows of a source of studies.

    Args:
        dataset: columns ``tokens`` (context_size), ``positions`` (context_size, -1 at padding), ``kinds``
            (context_size, :class:`TokenKind` values), ``study_id`` and ``n_cut``.
        summary: summary of the rows.
    """

    dataset: Dataset
    summary: RowSummary

    def describe(self) -> str:
        """A few lines for people: tokens per study, share of each kind, and how much was cut."""
        return self.summary.describe()


def build_rows(
    studies: Sequence[Study],
    processor: StudyProcessor,
    policy: TokenPolicy,
    *,
    context_size: int,
    d_vocab: int,
    cache_path: Path | None = None,
    show_progress: bool = True,
) -> StudyRows:
    """Turn studies into rows, one at a time, or reuse the rows of an earlier call.

    Args:
        studies: studies, read by index; only one study's text is in memory at a time. A source has a fingerprint;
            any other sequence is read once to compute one.
        processor: the model's processor.
        policy: which tokens are kept.
        context_size: length of every row.
        d_vocab: size of the model's vocabulary, above which the ids of images and studies start.
        cache_path: where rows are kept; :func:`~sae_lens_maira.files.default_cache_path` if None.
        show_progress: whether to show a progress bar.

    Raises:
        RowError: the context is too short for the fixed part of a row, or a study cannot be encoded.
    """
    from datasets import Dataset

    needed = smallest_context(policy, processor.n_image_tokens)
    if context_size < needed:
        raise RowError(
            f"context_size {context_size} is too short: study token and image tokens ({policy.image_tokens}) need up "
            f"to {needed - 1}, and one token of text; use at least {needed}."
        )
    key = _fingerprint(studies, processor, policy, context_size, d_vocab)
    folder = (cache_path or default_cache_path()) / "rows" / key
    summary = _read_summary(folder)
    if summary is not None:
        logger.info("Rows found in '%s'.", folder)
    else:
        _remove_leftovers(folder.parent)
        with exclusive(_lock_path(folder)):
            summary = _read_summary(folder)  # another process may have made them in the meantime
            if summary is None:
                summary = _write(folder, studies, processor, policy, context_size, d_vocab, show_progress)
    return StudyRows(Dataset.from_file(str(folder / "rows.arrow")), summary)


def _read_summary(folder: Path) -> RowSummary | None:
    """The summary of complete rows, which was written last; None if it is missing or damaged."""
    try:
        return RowSummary(**from_json((folder / _SUMMARY).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _write(
    folder: Path,
    studies: Sequence[Study],
    processor: StudyProcessor,
    policy: TokenPolicy,
    context_size: int,
    d_vocab: int,
    show_progress: bool,
) -> RowSummary:
    """Write rows into a temporary folder and rename it, so that a killed run leaves no incomplete rows."""
    from datasets import Features, Value
    from datasets import Sequence as SequenceFeature
    from datasets.arrow_writer import ArrowWriter

    features = Features(
        tokens=SequenceFeature(Value("int64"), length=context_size),
        positions=SequenceFeature(Value("int32"), length=context_size),
        kinds=SequenceFeature(Value("int8"), length=context_size),
        study_id=Value("string"),
        n_cut=Value("int32"),
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        count = _Count(context_size)
        rows = iterate_rows(studies, processor, policy, d_vocab)
        with ArrowWriter(path=str(unfinished / "rows.arrow"), features=features) as writer:
            for study_id, row in tqdm(rows, total=len(studies), desc="rows", disable=not show_progress):
                n_cut = count.add(row)
                padded = row.padded(context_size, processor.tokenizer.pad_token_id)
                columns = {"tokens": padded.tokens, "positions": padded.positions, "kinds": padded.kinds}
                writer.write({**columns, "study_id": study_id, "n_cut": n_cut})
            writer.finalize()
        summary = count.summary()
        (unfinished / _SUMMARY).write_text(json.dumps(asdict(summary), indent=1), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # damaged: it has no whole summary
        unfinished.rename(folder)
        return summary
    except OSError as error:
        if not lacks_room(error):
            raise
        raise RowError(f"Rows cannot be written to '{folder.parent}', as the disk is full; make room.") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _lock_path(folder: Path) -> Path:
    """Path of the lock of the process that writes a folder of rows."""
    return folder.parents[1] / "locks" / f"rows-{folder.name}.lock"


def _remove_leftovers(rows_path: Path) -> None:
    """Remove the incomplete files of killed processes, because they contain token ids of reports."""
    for leftover in rows_path.glob(".*-*"):
        key = leftover.name[1:].partition("-")[0]
        with exclusive(_lock_path(rows_path / key), wait=False) as is_ours:
            if is_ours:
                shutil.rmtree(leftover, ignore_errors=True)


def iterate_rows(
    studies: Sequence[Study], processor: StudyProcessor, policy: TokenPolicy, d_vocab: int
) -> Iterator[tuple[str, CompactRow]]:
    """Yield study ids and unpadded rows, in the order of the source."""
    vocabulary = RowVocabulary(d_vocab)
    for index in range(len(studies)):
        study = studies[index]
        ids, kinds = encode_study(study, processor, policy)
        yield study.study_id, compact_row(ids, kinds, policy, vocabulary, index)


class _Count:
    """Accumulates a :class:`RowSummary`."""

    def __init__(self, context_size: int) -> None:
        self.context_size = context_size
        self.n_studies = self.n_tokens = self.longest = self.n_cut_studies = self.n_cut_tokens = 0
        self.by_kind = np.zeros(len(TokenKind), dtype=np.int64)

    def add(self, row: CompactRow) -> int:
        """Count a row, and return how many of its tokens do not fit."""
        n_tokens = len(row.tokens)
        n_cut = max(n_tokens - self.context_size, 0)
        self.n_studies += 1
        self.n_tokens += n_tokens - n_cut
        self.longest = max(self.longest, n_tokens)
        self.n_cut_studies += n_cut > 0
        self.n_cut_tokens += n_cut
        self.by_kind += np.bincount(row.kinds[: self.context_size], minlength=len(TokenKind))
        return n_cut

    def summary(self) -> RowSummary:
        if not self.n_studies:
            raise RowError("There are no studies to make rows of.")
        names = {kind.name.lower(): int(self.by_kind[kind]) for kind in TokenKind if self.by_kind[kind]}
        return RowSummary(
            n_studies=self.n_studies,
            n_tokens=self.n_tokens,
            longest=self.longest,
            tokens_by_kind=names,
            context_size=self.context_size,
            n_cut_studies=self.n_cut_studies,
            n_cut_tokens=self.n_cut_tokens,
        )


def _fingerprint(
    studies: Sequence[Study], processor: StudyProcessor, policy: TokenPolicy, context_size: int, d_vocab: int
) -> str:
    import datasets

    parts: list[Any] = [
        _FORMAT_VERSION,
        datasets.__version__.split(".")[0],  # older versions cannot read what newer ones write
        policy.to_dict(),
        context_size,
        d_vocab,
        processor.fingerprint(),
        as_source(studies).fingerprint,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]
