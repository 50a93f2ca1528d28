"""Sets of features that are scored by the same rule: the SAE's latents, and every control.

Sparse features are pooled once, in one pass over the tokens, and lie on disk feature by feature. Projections are
computed again when they are needed, some directions at a time. So memory holds one block of features, however many
studies and features there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from scipy.sparse import csr_array
from torch import Tensor

from sae_lens_maira.concepts.pooled import PooledBlock
from sae_lens_maira.concepts.segments import Segments
from sae_lens_maira.features.recording import Recording
from sae_lens_maira.features.sparse import SparseWriter, chunks, entries, n_columns, n_rows, transposed

MAX_ENTRIES = 1 << 21
"""Entries in a block."""
MAX_FEATURES = 1024
"""Features in a block."""
CHUNK_TOKENS = 8192


@dataclass(frozen=True, eq=False)
class Firings:
    """Sparse features at the tokens of whole studies.

    Args:
        stop: number of recorded tokens up to the end of these studies.
        tokens: recorded token of each entry, ascending.
        features: feature of each entry.
        values: positive value of each entry.
    """

    stop: int
    tokens: Integer[np.ndarray, " n_entries"]
    features: Integer[np.ndarray, " n_entries"]
    values: Float[np.ndarray, " n_entries"]


@runtime_checkable
class FeatureSet(Protocol):
    """Features of one kind."""

    @property
    def n_features(self) -> int:
        """Number of features."""
        ...

    def blocks(self, chosen: Int[np.ndarray, " n"] | None = None) -> Iterator[tuple[np.ndarray, PooledBlock]]:
        """Blocks of features, with the number of each feature; all features if none are chosen."""
        ...


class SparseFeatures:
    """Features that are silent in most segments.

    Args:
        maxima: largest value of each feature in each segment, (n_features, n_segments).
        sums: sum over the segment's tokens, with the same entries.
    """

    def __init__(self, maxima: csr_array, sums: csr_array) -> None:
        self._maxima, self._sums = maxima, sums

    @property
    def n_features(self) -> int:
        return n_rows(self._maxima)

    def blocks(self, chosen: Int[np.ndarray, " n"] | None = None) -> Iterator[tuple[np.ndarray, PooledBlock]]:
        """Blocks of features."""
        maxima, sums = self._maxima, self._sums
        if chosen is not None:
            maxima, sums = maxima[chosen], sums[chosen]
        for first, last in chunks(maxima, MAX_ENTRIES):
            for start in range(first, last, MAX_FEATURES):
                stop = min(start + MAX_FEATURES, last)
                features, segments, largest = entries(maxima, start, stop)
                total = entries(sums, start, stop)[2]
                numbers = np.arange(start, stop) if chosen is None else chosen[start:stop]
                yield numbers, PooledBlock(stop - start, features - start, segments, largest, total)


class Projections:
    """Projections of the activations on directions.

    Args:
        recording: the activations.
        segments: of the recorded studies.
        directions: one per column.
    """

    def __init__(self, recording: Recording, segments: Segments, directions: Float[Tensor, "d_in n_features"]) -> None:
        self._recording, self._segments, self._directions = recording, segments, directions

    @property
    def n_features(self) -> int:
        return self._directions.shape[1]

    def blocks(self, chosen: Int[np.ndarray, " n"] | None = None) -> Iterator[tuple[np.ndarray, PooledBlock]]:
        """Blocks of features; each block is a pass over the activations."""
        numbers = np.arange(self.n_features) if chosen is None else chosen
        n_segments = self._segments.n_segments
        size = max(MAX_ENTRIES // n_segments, 1)
        for start in range(0, len(numbers), size):
            own = numbers[start : start + size]
            maxima, sums = self.pooled(own)
            features = np.repeat(np.arange(len(own)), n_segments)
            segments = np.tile(np.arange(n_segments), len(own))
            yield own, PooledBlock(len(own), features, segments, maxima.T.reshape(-1), sums.T.reshape(-1))

    @torch.no_grad()
    def pooled(self, numbers: Int[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
        """Largest value and sum of some projections in every segment, (n_segments, n) each."""
        directions = self._directions[:, torch.from_numpy(numbers)].contiguous()
        shape = (self._segments.n_segments, len(numbers))
        maxima, sums = np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.float32)
        first = 0
        for chunk in self._recording.chunks(CHUNK_TOKENS):
            segments = self._segments.of_token[first : first + len(chunk)]
            order = np.argsort(segments, kind="stable")
            starts = np.flatnonzero(np.diff(segments[order], prepend=-1))
            values = (chunk @ directions).numpy()[order]
            own = segments[order][starts]
            maxima[own] = np.maximum.reduceat(values, starts, axis=0)
            sums[own] = np.add.reduceat(values, starts, axis=0)
            first += len(chunk)
        return maxima, sums


def pool_firings(firings: Iterable[Firings], n_features: int, segments: Segments, folder: Path) -> SparseFeatures:
    """Pool sparse features over segments, in files of a folder.

    Args:
        firings: the features at all tokens, in the order of the tokens.
        n_features: number of features.
        segments: of the recorded studies.
        folder: where the files are written.
    """
    n_done = 0
    maxima, sums = (SparseWriter(folder / name, n_features) for name in ("maxima", "sums"))
    with maxima, sums:
        for part in firings:
            last_study = segments.study[segments.of_token[part.stop - 1]]
            stop = int(np.searchsorted(segments.study, last_study, side="right"))
            key = segments.of_token[part.tokens] * np.int64(n_features) + part.features
            order = np.argsort(key, kind="stable")
            firsts = np.flatnonzero(np.diff(key[order], prepend=-1))
            found = key[order][firsts]
            counts = np.bincount(found // n_features - n_done, minlength=stop - n_done)
            values = part.values[order]
            for writer, pool in ((maxima, np.maximum), (sums, np.add)):
                pooled = pool.reduceat(values, firsts) if len(firsts) else values
                writer.append(counts, found % n_features, pooled)
            n_done = stop
        pooled_maxima, pooled_sums = maxima.finish(), sums.finish()
    assert n_rows(pooled_maxima) == segments.n_segments, "every study is in the firings"
    assert n_columns(pooled_maxima) == n_features
    by_feature = [
        transposed(matrix, folder / f"{name}_by_feature")
        for name, matrix in (("maxima", pooled_maxima), ("sums", pooled_sums))
    ]
    return SparseFeatures(*by_feature)
