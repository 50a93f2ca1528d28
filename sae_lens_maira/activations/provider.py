"""Batches of cached activations for SAE-Lens's trainers.

1. A :class:`~.selection.TokenSelection` selects tokens. Their indices are held in memory, 4 bytes per token.
2. :class:`~.shuffle.GlobalShuffle` orders them. Batches are consecutive pieces of this order. A batch that reaches the
   end of an epoch continues with the next epoch, so every token is used once per epoch.
3. A batch is gathered from the memory maps in storage order, which is faster to read. The order within a batch does not
   matter for training.

The position in the data is an epoch and a number of tokens, so saving and restoring it costs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from sae_lens_maira.activations.read import ActivationCache
from sae_lens_maira.activations.selection import TokenSelection
from sae_lens_maira.activations.shuffle import GlobalShuffle
from sae_lens_maira.buffers import BufferPool
from sae_lens_maira.errors import CacheError, DataExhausted

RUNS_ABOVE_BYTES = 16 << 30
"""Larger caches are read in runs of ``RUN_BYTES``; a uniformly random order would read each page many times."""
RUN_BYTES = 256 << 10
WINDOW_BYTES = 1 << 30


class _CachedTokens:
    """Selects, orders and gathers the tokens of a cache at one or more hook points.

    Args:
        cache: a whole cache.
        hook_names: one or more of its hook points.
        batch_size: tokens per batch.
        selection: which tokens are used; all if None.
        seed: determines the order.
        dtype, device: of the batches.
        run_length, window_bytes: see :mod:`~sae_lens_maira.activations.shuffle`. By default the order is uniformly
            random for up to 16 GiB of selected activations, and made of runs of 256 KiB for more.

    Attributes:
        hook_names: hook points that are read.
        epoch: number of the current epoch, counted from 0.
        place: number of tokens of this epoch that have been served.
        mean_norms: mean norm of the selected activations at each hook point.

    Raises:
        CacheError: there is no such hook point, or the cache is damaged.
        DataExhausted: the selection leaves no token.
    """

    def __init__(
        self,
        cache: ActivationCache,
        hook_names: str | Sequence[str],
        *,
        batch_size: int,
        selection: TokenSelection | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        run_length: int | None = None,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")
        self.hook_names: tuple[str, ...] = (hook_names,) if isinstance(hook_names, str) else tuple(hook_names)
        for name in self.hook_names:
            cache.check_hook_name(name)
        self.batch_size, self.dtype, self.device, self.d_in = batch_size, dtype, torch.device(device), cache.d_in
        self._units = list(cache.units())
        self._starts = np.cumsum([0, *(unit.contents.n_tokens for unit in self._units)])
        self._tensors = {name: [unit.tensor(name) for unit in self._units] for name in self.hook_names}
        self._tokens, self.mean_norms = self._select(cache, selection or TokenSelection())
        row_bytes = cache.d_in * cache.dtype.itemsize
        if run_length is None:
            n_bytes = len(self._tokens) * row_bytes * len(self.hook_names)
            run_length = 1 if n_bytes <= RUNS_ABOVE_BYTES else max(RUN_BYTES // row_bytes, 1)
        self.order = GlobalShuffle(len(self._tokens), seed, run_length, max(window_bytes // row_bytes, 1))
        self.epoch = 0
        self.place = 0
        self._row_bytes = row_bytes
        self._stored = torch.empty(batch_size, cache.d_in, dtype=cache.dtype)
        self._memory = BufferPool()
        self._asked_for: tuple[int, int] | None = None
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read-ahead") if run_length > 1 else None

    @property
    def n_tokens(self) -> int:
        """Tokens per epoch."""
        return len(self._tokens)

    def _select(
        self, cache: ActivationCache, selection: TokenSelection
    ) -> tuple[Integer[np.ndarray, " n_tokens"], dict[str, float]]:
        """Indices of the selected tokens in storage order, and their mean norm at each hook point."""
        dtype = np.uint32 if self._starts[-1] < 2**32 else np.uint64
        tokens: list[np.ndarray] = [np.empty(0, dtype=dtype)]
        sums = dict.fromkeys(self.hook_names, 0.0)
        for unit, start in zip(self._units, self._starts, strict=False):
            block = unit.block(self.hook_names)
            selected = selection.of(block)
            tokens.append((np.flatnonzero(selected.numpy()) + start).astype(dtype))
            for name in self.hook_names:
                sums[name] += float(block.norms[name][selected].sum(dtype=torch.float64))
        chosen = np.concatenate(tokens)
        if not len(chosen):
            raise DataExhausted(f"No token of the cache '{cache.path}' is left by {selection}; widen the selection.")
        return chosen, {name: value / len(chosen) for name, value in sums.items()}

    @property
    def scaling_factors(self) -> dict[str, float]:
        """Factors that scale the selected activations at each hook point to a mean norm of ``d_in**0.5``."""
        return {name: self.d_in**0.5 / norm for name, norm in self.mean_norms.items()}

    def next_tokens(self) -> Integer[np.ndarray, " batch"]:
        """Take the next batch: the indices of its tokens in storage order, ascending."""
        wanted, pieces = self.batch_size, []
        while wanted:
            stop = min(self.place + wanted, self.n_tokens)
            self._read_ahead()
            pieces.append(self.order.take(self.epoch, self.place, stop))
            wanted -= stop - self.place
            self.place = stop
            if stop == self.n_tokens:
                self.epoch, self.place = self.epoch + 1, 0
        return np.sort(self._tokens[np.concatenate(pieces)]).astype(np.int64)

    def gather(self, hook_name: str, tokens: Integer[np.ndarray, " batch"]) -> Float[Tensor, "batch d_in"]:
        """Activations at one hook point.

        Args:
            hook_name: one of ``hook_names``.
            tokens: indices in storage order, ascending, at most ``batch_size`` of them.
        """
        found = self._memory.empty((len(tokens), self.d_in), self.dtype)
        stored = found if found.dtype == self._stored.dtype else self._stored[: len(tokens)]
        edges = np.searchsorted(tokens, self._starts)
        rows = torch.from_numpy(tokens - np.repeat(self._starts[:-1], np.diff(edges)))
        for values, first, last in zip(self._tensors[hook_name], edges.tolist(), edges[1:].tolist(), strict=False):
            if first < last:
                torch.index_select(values, 0, rows[first:last], out=stored[first:last])
        if found is not stored:
            found.copy_(stored)
        return found.to(self.device)

    def state_dict(self) -> dict[str, Tensor]:
        """The position in the data, and a checksum of the order to compare with another provider's."""
        values = {
            "epoch": self.epoch,
            "place": self.place,
            "n_tokens": self.n_tokens,
            "order": self.order.checksum(self.epoch),
        }
        return {f"cached_activations.{name}": torch.tensor(value) for name, value in values.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a saved position.

        Raises:
            CacheError: the state belongs to other tokens or to another order.
        """
        try:
            epoch, place, n_tokens, order = (
                int(state[f"cached_activations.{name}"]) for name in ("epoch", "place", "n_tokens", "order")
            )
        except KeyError:
            raise CacheError(
                "The checkpoint is of a run without cached activations; start a new run to use them."
            ) from None
        if n_tokens != self.n_tokens or order != self.order.checksum(epoch):
            raise CacheError(
                "The checkpoint is of a run with other cached tokens, or with another seed or run length; go on with "
                "the settings it was made with."
            )
        self.epoch, self.place = epoch, place

    def _read_ahead(self) -> None:
        """Ask the operating system to read this window and the next one into memory."""
        if self._reader is None:
            return
        now = (self.epoch, self.order.window_at(self.epoch, self.place))
        if now == self._asked_for:
            return
        first = self._asked_for is None
        self._asked_for = now
        for window in (now[1], now[1] + 1) if first else (now[1] + 1,):
            self._reader.submit(self._ask_for, self.order.runs_of(self.epoch, window))

    def _ask_for(self, runs: Sequence[range]) -> None:
        if not hasattr(os, "posix_fadvise"):
            return
        by_unit: dict[int, list[range]] = {}
        for run in runs:
            first, last = int(self._tokens[run.start]), int(self._tokens[run.stop - 1])
            for unit in range(*(np.searchsorted(self._starts, [first, last], side="right") - [1, 0])):
                start = self._starts[unit]
                by_unit.setdefault(unit, []).append(
                    range(max(first - start, 0), min(last + 1, self._starts[unit + 1]) - start)
                )
        for unit, ranges in by_unit.items():
            descriptor = os.open(self._units[unit].path, os.O_RDONLY)
            try:
                for name in self._tensors:
                    offset = self._units[unit].offset(name)
                    for rows in ranges:
                        os.posix_fadvise(
                            descriptor,
                            offset + int(rows.start) * self._row_bytes,
                            len(rows) * self._row_bytes,
                            os.POSIX_FADV_WILLNEED,
                        )
            finally:
                os.close(descriptor)


class CachedActivations(_CachedTokens, Iterator[Tensor]):
    """An endless stream of batches of shape (batch_size, d_in): a data provider for SAE-Lens's ``SAETrainer``.

    Arguments and errors are those of :class:`_CachedTokens`, with one hook point.
    """

    @property
    def hook_name(self) -> str:
        """The one hook point that is read."""
        (name,) = self.hook_names
        return name

    @property
    def scaling_factor(self) -> float:
        """The factor that SAE-Lens's ``expected_average_only_in`` estimates from batches, but exact."""
        return self.scaling_factors[self.hook_name]

    def __next__(self) -> Float[Tensor, "batch d_in"]:
        return self.gather(self.hook_name, self.next_tokens())


class CachedMultiHookActivations(_CachedTokens, Iterator[dict[str, Tensor]]):
    """The same tokens at several hook points: a data provider for SAE-Lens's ``MultiSAETrainer``.

    Arguments and errors are those of :class:`_CachedTokens`.
    """

    def __next__(self) -> dict[str, Tensor]:
        tokens = self.next_tokens()
        return {name: self.gather(name, tokens) for name in self.hook_names}
