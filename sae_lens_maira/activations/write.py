"""Writes a cache: the model runs once over its studies, and an interrupted run can be resumed at any point.

:class:`~.live.LiveActivations` makes the blocks. A thread hashes and writes each unit while the model computes the next
one. A unit's file depends only on its range of studies, so units can be made on any machine and in any order: another
scheduler needs only :func:`make_unit` and :func:`~.unit_file.write_unit`.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens_maira.activations.block import Block, SkippedStudy
from sae_lens_maira.activations.config import Shard, WriteConfig
from sae_lens_maira.activations.format import HEADER_NAME, SKIPPED_NAME, UnitRecord, identity_hash, remove_unfinished
from sae_lens_maira.activations.header import check_same, make_header, read_header
from sae_lens_maira.activations.live import LiveActivations, StudyProgress, check_hook_names
from sae_lens_maira.activations.manifest import (
    count_units,
    describe_skipped,
    done_units,
    finish,
    read_skipped,
    write_skipped,
)
from sae_lens_maira.activations.plan import Planner
from sae_lens_maira.activations.unit_file import write_unit
from sae_lens_maira.errors import CacheError, Interrupted
from sae_lens_maira.files import to_json, write_text

if TYPE_CHECKING:
    from sae_lens_maira.hooked import HookedVisionLanguageModel

logger = logging.getLogger(__name__)

_N_SAMPLED_STUDIES = 64
_BYTES_BESIDE = 13
"""Bytes per token of token id, study index, position and kind."""


@dataclass(frozen=True)
class CachingReport:
    """The result of a run.

    Args:
        path: the cache's folder.
        n_studies, n_tokens: totals of this shard, earlier runs included.
        skipped: this shard's skipped studies.
        is_whole: whether all shards are done.
    """

    path: Path
    n_studies: int
    n_tokens: int
    skipped: list[SkippedStudy]
    is_whole: bool

    def describe(self) -> str:
        """One line for people."""
        more = "" if self.is_whole else "; other shards are still to come"
        return f"{self.n_tokens} tokens of {self.n_studies} studies, skipped: {describe_skipped(self.skipped)}{more}"


def write_cache(
    model: HookedVisionLanguageModel,
    path: Path,
    settings: WriteConfig,
    *,
    shard: Shard | None = None,
    about: Mapping[str, Any] | None = None,
    show_progress: bool = True,
) -> CachingReport:
    """Cache the activations of a model's studies, or continue where an earlier run stopped.

    Args:
        model: a model bound to studies and a token policy.
        path: the cache's folder.
        settings: how to cache.
        shard: which units to make; all if None. Shards may share a folder, or be merged later.
        about: further notes for people in the cache's header.
        show_progress: whether to show a progress bar.

    Raises:
        CacheMismatch: the folder holds a cache of another model, source or settings.
        CacheError: too many studies cannot be used, the disk is full, or ``settings.dtype`` cannot hold the values.
        Interrupted: Ctrl-C was pressed; the next run continues.
    """
    header = _open_or_start(model, path, settings, about or {})
    units = (shard or Shard()).of(count_units(header["identity"]))
    remove_unfinished(path, units)
    done = done_units(path, units)
    if len(done) < len(units):
        _announce(model, path, settings, len(units), len(done))
    try:
        _write_units(model, path, settings, identity_hash(header["identity"]), units, done, show_progress)
    except KeyboardInterrupt:
        n_done = len(done_units(path, units))
        raise Interrupted(
            f"interrupted after {n_done} of {len(units)} units; the same command goes on from there"
        ) from None
    records = done_units(path, units)
    report = CachingReport(
        path,
        sum(record.n_studies for record in records.values()),
        sum(record.n_tokens for record in records.values()),
        read_skipped(path, units),
        finish(path) is not None,
    )
    logger.info("'%s': %s.", path, report.describe())
    return report


def make_unit(model: HookedVisionLanguageModel, settings: WriteConfig, unit: int) -> Block:
    """The activations of one unit. They depend only on the arguments; studies that cannot be used are skipped.

    Args:
        model: a model bound to studies and a token policy.
        settings: how to cache.
        unit: the unit's number.

    Raises:
        CacheError: ``settings.dtype`` cannot hold the activations.
    """
    (block,) = _live(model, settings, [unit], None)
    return block


def _live(
    model: HookedVisionLanguageModel, settings: WriteConfig, units: Sequence[int], progress: StudyProgress | None
) -> LiveActivations:
    n_studies = len(model.studies)
    return LiveActivations(
        model,
        settings.hook_names,
        indices=[index for unit in units for index in _studies_of_unit(unit, settings, n_studies)],
        context_size=settings.context_size,
        dtype=settings.torch_dtype,
        block_size=settings.unit_size,
        max_batch_tokens=settings.max_batch_tokens,
        workers=settings.workers,
        decode_ahead=settings.decode_ahead,
        progress=progress,
    )


def _studies_of_unit(unit: int, settings: WriteConfig, n_studies: int) -> range:
    return range(unit * settings.unit_size, min((unit + 1) * settings.unit_size, n_studies))


def _open_or_start(
    model: HookedVisionLanguageModel, path: Path, settings: WriteConfig, about: Mapping[str, Any]
) -> dict[str, Any]:
    check_hook_names(model, settings.hook_names)
    if not len(model.studies):
        raise CacheError("There are no studies to cache.")
    header = make_header(model, settings, about)
    if (path / HEADER_NAME).is_file():
        check_same(path, read_header(path)["identity"], header["identity"])
        return header
    path.mkdir(parents=True, exist_ok=True)
    if any(path.glob("units/*.json")):
        raise CacheError(f"'{path}' holds units but no {HEADER_NAME}; choose another folder.")
    write_text(path / HEADER_NAME, to_json(header))
    return header


def _announce(model: HookedVisionLanguageModel, path: Path, settings: WriteConfig, n_units: int, n_done: int) -> None:
    n_studies = min((n_units - n_done) * settings.unit_size, len(model.studies))
    n_tokens = n_studies * _tokens_per_study(model, settings)
    n_bytes = n_tokens * (
        len(settings.hook_names) * (model.cfg.d_model * settings.torch_dtype.itemsize + 4) + _BYTES_BESIDE
    )
    free = shutil.disk_usage(path).free
    logger.info(
        "Caching %s of about %d studies into '%s': about %.0f tokens, %s; %s are free. %d of %d units are done.",
        ", ".join(settings.hook_names),
        n_studies,
        path,
        n_tokens,
        _readable(n_bytes),
        _readable(free),
        n_done,
        n_units,
    )
    if n_bytes > free:
        logger.warning("The cache will probably not fit: it needs about %s more.", _readable(n_bytes - free))


def _tokens_per_study(model: HookedVisionLanguageModel, settings: WriteConfig) -> float:
    """Estimate from a sample of studies, evenly spaced over the source."""
    studies = model.studies
    planner = Planner(model, studies, settings.context_size, settings.max_batch_tokens)
    plan = planner.plan(range(0, len(studies), -(-len(studies) // _N_SAMPLED_STUDIES)))
    return sum(len(study.row.tokens) for study in plan.in_order) / (len(plan.in_order) + len(plan.skipped))


def _readable(n_bytes: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"


def _write_units(
    model: HookedVisionLanguageModel,
    path: Path,
    settings: WriteConfig,
    cache: str,
    units: range,
    done: Mapping[int, UnitRecord],
    show_progress: bool,
) -> None:
    """Write the units that are not done, each while the next one is computed."""
    todo = [unit for unit in units if unit not in done]
    n_studies = len(model.studies)
    n_done, n_todo = (sum(len(_studies_of_unit(u, settings, n_studies)) for u in part) for part in (done, todo))
    n_skipped = sum(record.n_skipped for record in done.values())
    most_skipped = settings.max_skipped_share * (n_done + n_todo)
    stream = _live(model, settings, todo, StudyProgress("caching", n_done, show_progress))
    with ThreadPoolExecutor(1, "write") as writer, closing(stream.blocks()) as blocks:
        writing: Future[UnitRecord] | None = None
        for unit, block in zip(todo, blocks, strict=False):
            _wait(writing, path)
            writing = writer.submit(write_unit, path, unit, cache, block)
            n_skipped += len(block.skipped)
            if n_skipped > most_skipped:
                break
        _wait(writing, path)
    if n_skipped > most_skipped:
        _refuse(path, settings, units, n_skipped, n_done + n_todo)


def _refuse(path: Path, settings: WriteConfig, units: range, n_skipped: int, n_studies: int) -> None:
    skipped = read_skipped(path, list(done_units(path, units)))
    write_skipped(path, skipped)
    raise CacheError(
        f"{n_skipped} of {n_studies} studies cannot be cached ({describe_skipped(skipped)}), more than "
        f"max_skipped_share {settings.max_skipped_share:g} allows; see '{path / SKIPPED_NAME}', and raise "
        "the share to go on without them."
    )


def _wait(writing: Future[UnitRecord] | None, path: Path) -> None:
    try:
        if writing is not None:
            writing.result()
    except OSError as error:
        raise CacheError(
            f"The cache '{path}' cannot be written ({error.strerror}); make room and run the same command again, which "
            "keeps what is done."
        ) from error
