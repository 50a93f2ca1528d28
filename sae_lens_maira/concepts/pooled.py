"""What features do in every segment, and from it in a region of every study: the largest value or the mean.

A block holds some features at a time. It lists only the segments in which a feature is defined: where a sparse feature
is silent there is no entry, and a projection has an entry everywhere. So both are ranked by the same code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Int, Integer

from sae_lens_maira.concepts.segments import Segments

Pool = Literal["max", "mean"]


@dataclass(frozen=True, eq=False)
class PooledBlock:
    """Some features in all segments.

    Args:
        n_features: number of features of the block.
        features: the feature of each entry, counted within the block; ascending.
        segments: the segment of each entry; ascending within a feature.
        maxima: the largest value at the segment's tokens; positive where a segment without entry counts as 0.
        sums: the sum of the values at the segment's tokens.
    """

    n_features: int
    features: Integer[np.ndarray, " n_entries"]
    segments: Integer[np.ndarray, " n_entries"]
    maxima: Float32[np.ndarray, " n_entries"]
    sums: Float32[np.ndarray, " n_entries"]


@dataclass(frozen=True, eq=False)
class Ranked:
    """Values of some features in studies, sorted by feature and then by value.

    A study without entry has a value below all entries of the feature, the same in all such studies.

    Args:
        n_features: number of features.
        features: the feature of each entry.
        studies: the study of each entry.
        values: the value of each entry, ascending within a feature.
    """

    n_features: int
    features: Integer[np.ndarray, " n_entries"]
    studies: Integer[np.ndarray, " n_entries"]
    values: Float32[np.ndarray, " n_entries"]

    def only(self, asked: Bool[np.ndarray, " n_studies"]) -> Ranked:
        """The entries of some studies."""
        kept = asked[self.studies]
        return Ranked(self.n_features, self.features[kept], self.studies[kept], self.values[kept])

    def feature(self, number: int) -> Ranked:
        """One feature alone."""
        first, last = np.searchsorted(self.features, [number, number + 1])
        own = slice(int(first), int(last))
        return Ranked(1, np.zeros(last - first, dtype=np.int64), self.studies[own], self.values[own])


def tokens_of_studies(
    segments: Segments, chosen: Bool[np.ndarray, " n_segments"], n_studies: int
) -> Int[np.ndarray, " n_studies"]:
    """Each study's number of tokens in a region."""
    counts = np.bincount(segments.study[chosen], weights=segments.n_tokens[chosen], minlength=n_studies)
    return counts.astype(np.int64)


def rank(
    block: PooledBlock,
    segments: Segments,
    chosen: Bool[np.ndarray, " n_segments"],
    n_tokens: Int[np.ndarray, " n_studies"],
    pool: Pool,
) -> Ranked:
    """Pool a block over the region of each study, and sort.

    Args:
        block: the features.
        segments: all segments.
        chosen: those of the region.
        n_tokens: each study's number of tokens in the region.
        pool: the largest value, or the mean over the region's tokens.
    """
    kept = chosen[block.segments]
    features = block.features[kept]
    studies = segments.study[block.segments[kept]]
    firsts = np.flatnonzero((np.diff(features, prepend=-1) != 0) | (np.diff(studies, prepend=-1) != 0))
    if not len(firsts):
        return Ranked(block.n_features, features, studies, block.maxima[kept])
    if pool == "max":
        values = np.maximum.reduceat(block.maxima[kept], firsts)
    else:
        sums = np.add.reduceat(block.sums[kept].astype(np.float64), firsts)
        values = (sums / n_tokens[studies[firsts]]).astype(np.float32)
    return sort(block.n_features, features[firsts], studies[firsts], values)


def sort(
    n_features: int,
    features: Integer[np.ndarray, " n_entries"],
    studies: Integer[np.ndarray, " n_entries"],
    values: Float32[np.ndarray, " n_entries"],
) -> Ranked:
    """Sort entries by feature and value, by one integer that has their order."""
    bits = (values + np.float32(0)).view(np.uint32)
    ascending = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    order = np.argsort((features.astype(np.uint64) << np.uint64(32)) | ascending, kind="stable")
    return Ranked(n_features, features[order], studies[order], values[order])
