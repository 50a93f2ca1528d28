"""Activations from the model: the loop that runs it over studies.

1. A thread tokenizes the studies of the next blocks and groups them into batches (:mod:`.plan`).
2. Threads open and process the images of the next studies (:mod:`.decode_ahead`).
3. The model runs up to the layer of the last hook point. The activations of the kept tokens are stored in the order of
   the source.

All code that needs activations uses this loop, except SAE-Lens's store: it shuffles rows while an SAE trains, and runs
the model itself.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_maira.activations.block import Block, BlockStudy, SkippedStudy
from sae_lens_maira.activations.decode_ahead import DecodedStudy, ImageObserver, decode_study, map_ahead
from sae_lens_maira.activations.plan import BlockPlan, EncodedStudy, Planner
from sae_lens_maira.data.study import Study
from sae_lens_maira.errors import CacheError, Interrupted
from sae_lens_maira.interruption import StopRequest, noticed_interruptions

if TYPE_CHECKING:
    from sae_lens_maira.hooked import HookedVisionLanguageModel

BLOCK_SIZE = 256
MAX_BATCH_TOKENS = 8192
_N_PLANS_AHEAD = 2
_ANSWER = "Stopping after this batch; press Ctrl-C again to stop at once."


@dataclass(frozen=True)
class StudyProgress:
    """A progress bar over studies.

    Args:
        description: the bar's label.
        n_done: studies done by earlier runs.
        shown: whether the bar is shown.
    """

    description: str = "activations"
    n_done: int = 0
    shown: bool = True


@dataclass(frozen=True)
class _Job:
    """One study of a batch. A block without usable studies is a single job whose ``encoded`` is None."""

    plan: BlockPlan
    batch: int
    encoded: EncodedStudy | None


class LiveActivations:
    """Activations of studies from the model, in blocks: an :class:`~.stream.ActivationStream`.

    The study at index i belongs to block ``i // block_size``. Batches, which affect the last digits of activations,
    therefore do not depend on where a stream starts or ends.

    Args:
        model: the model to run; its token policy decides which tokens are kept.
        hook_names: hook points of the model's blocks; all are read in one pass.
        studies: the studies, read by index; the model's own if None.
        indices: indices of the studies to run, ascending; all if None.
        context_size: cut rows to this many tokens, as in training; None keeps whole rows.
        dtype: data type of the activations in blocks.
        block_size: studies per block.
        max_batch_tokens: padded tokens per forward pass; a study longer than this runs alone.
        workers: threads that open and process images.
        decode_ahead: studies whose images are prepared ahead of the model.
        observer: is called with every study's opened images.
        progress: the progress bar; None shows none.

    Raises:
        CacheError: a hook point has no activations at the kept tokens.
    """

    def __init__(
        self,
        model: HookedVisionLanguageModel,
        hook_names: Sequence[str],
        *,
        studies: Sequence[Study] | None = None,
        indices: Sequence[int] | None = None,
        context_size: int | None = None,
        dtype: torch.dtype = torch.float32,
        block_size: int = BLOCK_SIZE,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
        workers: int = 2,
        decode_ahead: int = 32,
        observer: ImageObserver | None = None,
        progress: StudyProgress | None = None,
    ) -> None:
        check_hook_names(model, hook_names)
        studies = model.studies if studies is None else studies
        self.hook_names: tuple[str, ...] = tuple(hook_names)
        self._model, self._dtype, self._observer = model, dtype, observer
        self._indices = range(len(studies)) if indices is None else indices
        self._block_size, self._workers, self._decode_ahead = block_size, workers, decode_ahead
        self._progress = progress or StudyProgress(shown=False)
        self._planner = Planner(model, studies, context_size, max_batch_tokens)

    def __iter__(self) -> Iterator[Block]:
        return self.blocks()

    def blocks(self) -> Generator[Block, None, None]:
        """Run the model. Closing the generator stops the run and its threads.

        Raises:
            CacheError: ``dtype`` cannot hold the activations.
            Interrupted: Ctrl-C was pressed; the run stops between two batches.
        """
        progress = self._progress
        with ExitStack() as stack:
            planner = _pool(stack, "plan", 1)
            decoders = _pool(stack, "decode", self._workers)
            total = progress.n_done + len(self._indices)
            bar: Any = tqdm(total=total, desc=progress.description, unit="study", disable=not progress.shown)
            stack.enter_context(bar)
            bar.update(progress.n_done)
            plans = map_ahead(planner, self._planner.plan, self._cut(), _N_PLANS_AHEAD)
            results = map_ahead(decoders, self._decode, _jobs(plan for _, plan in plans), self._decode_ahead)
            for plan, found in groupby(results, key=lambda result: result[0].plan):
                with noticed_interruptions(_ANSWER) as stop:
                    block = self._run(plan, found, bar, stop)
                yield block

    def _cut(self) -> Iterator[list[int]]:
        for _, indices in groupby(self._indices, key=lambda index: index // self._block_size):
            yield list(indices)

    def _decode(self, job: _Job) -> DecodedStudy | SkippedStudy | None:
        return None if job.encoded is None else decode_study(job.encoded, self._model, self._observer)

    def _run(
        self,
        plan: BlockPlan,
        found: Iterable[tuple[_Job, DecodedStudy | SkippedStudy | None]],
        bar: Any,
        stop: StopRequest,
    ) -> Block:
        """Run the model on the batches of one block."""
        block = _UnfinishedBlock(plan, self.hook_names, self._model.cfg.d_model, self._dtype)
        for _, results in groupby(found, key=lambda result: result[0].batch):
            batch = [study for _, study in results if study is not None]
            block.skipped += [study for study in batch if isinstance(study, SkippedStudy)]
            self._run_batch([study for study in batch if isinstance(study, DecodedStudy)], block)
            bar.update(len(batch))
            if stop.made:
                raise Interrupted("interrupted between two batches")
        bar.update(len(plan.skipped))
        return block.finish()

    @torch.no_grad()
    def _run_batch(self, batch: Sequence[DecodedStudy], block: _UnfinishedBlock) -> None:
        if not batch:
            return
        encoded = [study.encoded for study in batch]
        ids, rows = [study.ids for study in encoded], [study.row for study in encoded]
        width = max(len(row.tokens) for row in rows)
        inputs = self._model.reader.assemble(ids, rows, width, "right", [study.inputs for study in batch])
        _, cache = self._model.run_with_cache(inputs, names_filter=list(self.hook_names), return_type=None)
        for place, study in enumerate(batch):
            block.add(study, {name: cache[name][place, : len(study.encoded.row.tokens)] for name in self.hook_names})


class _UnfinishedBlock:
    """Collects one block: studies arrive in batch order and are stored in source order."""

    def __init__(self, plan: BlockPlan, hook_names: Sequence[str], d_in: int, dtype: torch.dtype) -> None:
        self._in_order = plan.in_order
        lengths = [len(study.row.tokens) for study in self._in_order]
        starts = np.cumsum([0, *lengths]).tolist()
        self._places = {
            study.index: slice(start, start + length)
            for study, start, length in zip(self._in_order, starts, lengths, strict=False)
        }
        self._activations = {name: torch.empty(starts[-1], d_in, dtype=dtype) for name in hook_names}
        self._norms = {name: torch.empty(starts[-1]) for name in hook_names}
        self._images: dict[int, dict[str, str]] = {}
        self.skipped: list[SkippedStudy] = list(plan.skipped)

    def add(self, study: DecodedStudy, activations: dict[str, Tensor]) -> None:
        """Store a study's activations; a study is skipped if any of them is not finite.

        Raises:
            CacheError: the block's dtype cannot hold them.
        """
        encoded = study.encoded
        for name, values in activations.items():
            if not values.isfinite().all():
                self.skipped.append(SkippedStudy(encoded.index, encoded.study.study_id, "activations not finite", name))
                return
        for name, values in activations.items():
            stored = self._activations[name][self._places[encoded.index]]
            stored.copy_(values)
            norms = stored.float().norm(dim=-1)
            if not norms.isfinite().all():
                dtype = str(stored.dtype).removeprefix("torch.")
                raise CacheError(
                    f"Activations at {name} reach {values.abs().max():.3g}, which {dtype} cannot hold; choose "
                    "dtype bfloat16 or float32."
                )
            self._norms[name][self._places[encoded.index]] = norms
        self._images[encoded.index] = study.images

    def finish(self) -> Block:
        """The block, without the studies that were skipped."""
        kept = [study for study in self._in_order if study.index in self._images]
        activations, norms = self._activations, self._norms
        if len(kept) < len(self._in_order):
            nothing = np.empty(0, dtype=np.int64)
            places = [np.arange(place.start, place.stop) for place in (self._places[study.index] for study in kept)]
            rows = torch.from_numpy(np.concatenate([nothing, *places]))
            activations = {name: values[rows] for name, values in activations.items()}
            norms = {name: values[rows] for name, values in norms.items()}
        return Block(
            activations=activations,
            norms=norms,
            token_ids=_joined([study.row.tokens for study in kept]),
            study_index=_joined([np.full(len(study.row.tokens), study.index) for study in kept]),
            position=_joined([np.arange(len(study.row.tokens)) for study in kept]),
            kind=_joined([study.row.kinds for study in kept]).to(torch.uint8),
            studies=[
                BlockStudy(study.index, study.study.study_id, len(study.row.tokens), self._images[study.index])
                for study in kept
            ],
            skipped=sorted(self.skipped, key=lambda study: study.index),
        )


def check_hook_names(model: HookedVisionLanguageModel, hook_names: Sequence[str]) -> None:
    """Refuse hook points that do not exist, or that have no activations at the kept tokens.

    Raises:
        CacheError: the message names the hook point.
    """
    for name in hook_names:
        model.check_hook_name(name)
        if not name.startswith("blocks."):
            raise CacheError(f"'{name}' has no activations at the kept tokens; cache hook points of blocks.")


def _joined(parts: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *parts]).astype(np.int64, copy=False))


def _jobs(plans: Iterable[BlockPlan]) -> Iterator[_Job]:
    for plan in plans:
        for number, batch in enumerate(plan.batches or ((None,),)):
            for encoded in batch:
                yield _Job(plan, number, encoded)


def _pool(stack: ExitStack, name: str, n_threads: int) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix=name)
    stack.callback(lambda: pool.shutdown(wait=True, cancel_futures=True))
    return pool
