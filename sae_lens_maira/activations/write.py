"""Runs the model once over its studies and writes the activations of the kept tokens, resumable at any moment.

1. A thread encodes the texts of the units that come next and puts their studies into batches (:mod:`.batching`).
2. Threads open and process the images of the studies that come next (:mod:`.decode_ahead`).
3. The model runs up to the highest hook point's layer; kept tokens are taken out, in the stored dtype.
4. A thread hashes and writes the unit that was finished last, while the model goes on (:mod:`.format`).

A unit's file is a function of its range of studies, so units can be made on any machines, in any order.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from sae_lens_maira.activations.config import Shard, WriteConfig
from sae_lens_maira.activations.decode_ahead import decode_study, map_ahead
from sae_lens_maira.activations.format import (
    HEADER_NAME,
    SKIPPED_NAME,
    SkippedStudy,
    UnitRecord,
    identity_hash,
    remove_unfinished,
)
from sae_lens_maira.activations.header import check_same, make_header, read_header
from sae_lens_maira.activations.manifest import (
    count_units,
    describe_skipped,
    done_units,
    finish,
    read_skipped,
    write_skipped,
)
from sae_lens_maira.activations.plan import EncodedStudy, UnitPlan, UnitPlanner
from sae_lens_maira.activations.unit_writer import UnitInMemory
from sae_lens_maira.errors import CacheError, Interrupted
from sae_lens_maira.files import to_json, write_text
from sae_lens_maira.interruption import StopRequest, noticed_interruptions

if TYPE_CHECKING:
    from sae_lens_maira.hooked.model import HookedMaira2

logger = logging.getLogger(__name__)

_N_SAMPLED_STUDIES = 64
_N_PLANS_AHEAD = 2
_BYTES_BESIDE = 13
"""Token id, study index, position and kind."""


@dataclass(frozen=True)
class CachingReport:
    """What a run leaves behind.

    Args:
        n_studies, n_tokens: of this shard, those of earlier runs included.
        skipped: this shard's.
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


@dataclass(frozen=True)
class _Job:
    """One study of a batch of a unit; a unit without usable studies is one job without a study."""

    plan: UnitPlan
    batch: int
    encoded: EncodedStudy | None


@torch.no_grad()
def write_cache(
    model: HookedMaira2,
    path: Path,
    settings: WriteConfig,
    *,
    shard: Shard | None = None,
    about: Mapping[str, Any] | None = None,
    show_progress: bool = True,
) -> CachingReport:
    """Cache the activations of a model's studies, or go on where an earlier run stopped.

    Args:
        model: with its studies and token policy.
        path: the cache's folder.
        settings: how to cache.
        shard: which share of the units to do; all if None. Shards may use one folder, or be merged later.
        about: more for people to read in the cache's header.
        show_progress: whether to show a progress bar.

    Raises:
        CacheMismatch: the folder holds a cache made with something else.
        CacheError: too many studies cannot be used, the disk is full, or ``settings.dtype`` cannot hold the values.
        Interrupted: Ctrl-C; the next run goes on.
    """
    header = _open_or_start(model, path, settings, about or {})
    identity = header["identity"]
    shard = shard or Shard()
    units = shard.of(count_units(identity))
    remove_unfinished(path, units)
    done = done_units(path, units)
    if len(done) < len(units):
        _announce(model, path, settings, len(units), len(done))
    try:
        with noticed_interruptions("Stopping after this batch; press Ctrl-C again to stop at once.") as stop:
            _write_units(model, path, settings, identity_hash(identity), units, done, stop, show_progress)
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


def _open_or_start(model: HookedMaira2, path: Path, settings: WriteConfig, about: Mapping[str, Any]) -> dict[str, Any]:
    for name in settings.hook_names:
        model.check_hook_name(name)
        if not name.startswith("blocks."):
            raise CacheError(f"'{name}' has no activations at the kept tokens; cache hook points of blocks.")
    if not len(model.reader.studies):
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


def _announce(model: HookedMaira2, path: Path, settings: WriteConfig, n_units: int, n_done: int) -> None:
    n_studies = min((n_units - n_done) * settings.unit_size, len(model.reader.studies))
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


def _tokens_per_study(model: HookedMaira2, settings: WriteConfig) -> float:
    """Estimated from a sample, evenly spaced over the source."""
    n_studies = len(model.reader.studies)
    plan = UnitPlanner(model, settings).plan(0, range(0, n_studies, -(-n_studies // _N_SAMPLED_STUDIES)))
    sampled = [study for batch in plan.batches for study in batch]
    return sum(len(study.row.tokens) for study in sampled) / (len(sampled) + len(plan.skipped))


def _readable(n_bytes: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"


def _write_units(
    model: HookedMaira2,
    path: Path,
    settings: WriteConfig,
    cache: str,
    units: range,
    done: Mapping[int, UnitRecord],
    stop: StopRequest,
    show_progress: bool,
) -> None:
    n_studies = len(model.reader.studies)

    def studies_of(unit: int) -> range:
        return range(unit * settings.unit_size, min((unit + 1) * settings.unit_size, n_studies))

    n_all = sum(len(studies_of(unit)) for unit in units)
    n_skipped = sum(record.n_skipped for record in done.values())
    units_planner = UnitPlanner(model, settings)
    with ExitStack() as stack:
        planner, decoders, writer = (
            _pool(stack, name, n) for name, n in (("plan", 1), ("decode", settings.workers), ("write", 1))
        )
        bar = stack.enter_context(tqdm(total=n_all, desc="caching", unit="study", disable=not show_progress))
        bar.update(sum(len(studies_of(unit)) for unit in done))
        plans = map_ahead(
            planner,
            lambda unit: units_planner.plan(unit, studies_of(unit)),
            (unit for unit in units if unit not in done),
            _N_PLANS_AHEAD,
        )
        results = map_ahead(
            decoders,
            lambda job: None if job.encoded is None else decode_study(job.encoded, model.processor),
            _jobs(plans),
            settings.decode_ahead,
        )
        writing: Future[UnitRecord] | None = None
        for plan, group in groupby(results, key=lambda found: found[0].plan):
            unit = UnitInMemory(settings)
            unit.skip(plan.skipped)
            for _, members in groupby(group, key=lambda found: found[0].batch):
                batch = [study for _, study in members if study is not None]
                unit.run(model, batch)
                bar.update(len(batch))
                if stop.made:
                    raise KeyboardInterrupt
            bar.update(len(plan.skipped))
            _wait(writing, path)
            writing = writer.submit(unit.write, path, plan.unit, cache, model.cfg.d_model)
            n_skipped += len(unit.skipped)
            if n_skipped > settings.max_skipped_share * n_all:
                break
        _wait(writing, path)
    if n_skipped > settings.max_skipped_share * n_all:
        skipped = read_skipped(path, list(done_units(path, units)))
        write_skipped(path, skipped)
        raise CacheError(
            f"{n_skipped} of {n_all} studies cannot be cached ({describe_skipped(skipped)}), more than "
            f"max_skipped_share {settings.max_skipped_share:g} allows; see '{path / SKIPPED_NAME}', and raise "
            "the share to go on without them."
        )


def _pool(stack: ExitStack, name: str, n_threads: int) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix=name)
    stack.callback(lambda: pool.shutdown(wait=True, cancel_futures=True))
    return pool


def _jobs(plans: Iterator[tuple[int, UnitPlan]]) -> Iterator[_Job]:
    for _, plan in plans:
        for number, batch in enumerate(plan.batches or ((None,),)):
            for encoded in batch:
                yield _Job(plan, number, encoded)


def _wait(writing: Future[UnitRecord] | None, path: Path) -> None:
    try:
        if writing is not None:
            writing.result()
    except OSError as error:
        raise CacheError(
            f"The cache '{path}' cannot be written ({error.strerror}); make room and run the same command again, which "
            "keeps what is done."
        ) from error
