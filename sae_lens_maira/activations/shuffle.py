"""The order of tokens: every token once per epoch, in an order that a seed determines.

1. The selected tokens, in storage order, are cut into runs of ``run_length`` tokens.
2. The runs are put into a uniformly random order, a new one each epoch, and cut into windows of ``window`` tokens.
3. The tokens of each window are put into a uniformly random order.

With ``run_length`` 1 the result is a uniformly random permutation of all tokens, and windows do not matter. With longer
runs it is not: tokens of one run always share a window, so each batch is a simple random sample of its window, and the
window is a simple random sample of the runs. In return, the disk is read one whole run at a time.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Integer


@dataclass(frozen=True)
class Epoch:
    """The order of one epoch.

    Args:
        number: counted from 0.
        runs: numbers of the runs, in the epoch's order.
        window_starts: position in the epoch of each window's first token; the last entry is the number of tokens.
    """

    number: int
    runs: Integer[np.ndarray, " n_runs"]
    window_starts: Integer[np.ndarray, " n_windows_and_one"]


class GlobalShuffle:
    """The order of tokens over epochs.

    Args:
        n_tokens: number of tokens.
        seed: determines the order.
        run_length: number of neighboring tokens that stay in one window.
        window: number of tokens that are mixed with each other, at least one run.
    """

    def __init__(self, n_tokens: int, seed: int, run_length: int = 1, window: int = 1 << 20) -> None:
        if n_tokens < 1:
            raise ValueError("There are no tokens to shuffle.")
        if run_length < 1 or window < 1:
            raise ValueError(f"run_length {run_length} and window {window} must be at least 1.")
        self.n_tokens = n_tokens
        self.seed = seed
        self.run_length = run_length
        self.runs_per_window = max(window // run_length, 1)
        self._epoch: Epoch | None = None
        self._window: tuple[int, int, np.ndarray] | None = None

    def epoch(self, number: int) -> Epoch:
        """The order of an epoch."""
        if self._epoch is None or self._epoch.number != number:
            n_runs = -(-self.n_tokens // self.run_length)
            runs = _permutation(n_runs, [self.seed, number]).astype(np.uint32 if n_runs < 2**32 else np.uint64)
            n_windows = -(-n_runs // self.runs_per_window)
            starts = np.arange(n_windows + 1, dtype=np.int64) * self.runs_per_window * self.run_length
            n_short = n_runs * self.run_length - self.n_tokens
            place_of_short_run = int(np.flatnonzero(runs == n_runs - 1)[0])
            starts[place_of_short_run // self.runs_per_window + 1 :] -= n_short
            starts[-1] = self.n_tokens
            self._epoch = Epoch(number, runs, starts)
        return self._epoch

    def take(self, epoch: int, start: int, stop: int) -> Integer[np.ndarray, " n_tokens"]:
        """Indices of the tokens at positions ``start`` to ``stop`` of an epoch."""
        starts = self.epoch(epoch).window_starts
        pieces: list[np.ndarray] = []
        while start < stop:
            window = int(np.searchsorted(starts, start, side="right")) - 1
            end = min(stop, int(starts[window + 1]))
            pieces.append(self._tokens(epoch, window)[start - starts[window] : end - starts[window]])
            start = end
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)

    def window_at(self, epoch: int, place: int) -> int:
        """The number of the window that contains a position of an epoch."""
        return int(np.searchsorted(self.epoch(epoch).window_starts, place, side="right")) - 1

    def runs_of(self, epoch: int, window: int) -> list[range]:
        """The tokens of a window, as ranges of indices; empty if there is no such window."""
        runs = self.epoch(epoch).runs[window * self.runs_per_window : (window + 1) * self.runs_per_window]
        starts = np.sort(runs).astype(np.int64) * self.run_length
        return [range(start, min(start + self.run_length, self.n_tokens)) for start in starts.tolist()]

    def checksum(self, epoch: int) -> int:
        """A checksum of an epoch's order."""
        first = self.take(epoch, 0, min(self.n_tokens, 4096))
        return zlib.crc32(first.astype("<i8").tobytes())

    def _tokens(self, epoch: int, window: int) -> np.ndarray:
        """All tokens of a window, in order."""
        if self._window is None or self._window[:2] != (epoch, window):
            runs = self.epoch(epoch).runs[window * self.runs_per_window : (window + 1) * self.runs_per_window]
            tokens = runs.astype(np.int64) * self.run_length
            if self.run_length > 1:
                tokens = (tokens[:, None] + np.arange(self.run_length)).reshape(-1)
                tokens = tokens[tokens < self.n_tokens]
                tokens = tokens[_permutation(len(tokens), [self.seed, epoch, window])]
            self._window = (epoch, window, tokens)
        return self._window[2]


def _permutation(n: int, seed: list[int]) -> Integer[np.ndarray, " n"]:
    """A uniformly random permutation; PyTorch makes them four times as fast as numpy."""
    (number,) = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    return torch.randperm(n, generator=torch.Generator().manual_seed(int(number) >> 1)).numpy()
