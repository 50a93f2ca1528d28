"""Per-feature statistics, computed in one or two passes: counts, histograms, strongest tokens, and co-activation.

They cover all tokens of the recorded studies, without padding. Only results are held in memory, such as best scores and
indices, never a matrix of features by tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Integer
from scipy.sparse import csr_array
from torch import Tensor

from sae_lens_maira.data.study import TokenKind
from sae_lens_maira.features.sparse import chunks, count_columns, entries, n_columns, n_rows, row

N_BINS = 40
_CHUNK = 256
"""Features that are compared with all others in one matrix product."""
_BUFFER = 1 << 21
"""Candidates that are collected before the best are picked."""


class BestOfEach:
    """The k best items of each feature in a stream; of items with equal scores, the earlier one wins.

    Args:
        n_features: number of features.
        k: items to keep per feature.
    """

    def __init__(self, n_features: int, k: int) -> None:
        self.n_features, self.k = n_features, k
        self._worst = np.zeros(n_features, dtype=np.float32)
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._n_candidates = 0

    def add(self, features: np.ndarray, items: np.ndarray, scores: np.ndarray) -> None:
        """Add candidates: their features, their numbers (larger than in earlier calls) and positive scores."""
        good = scores > self._worst[features]
        self._parts.append((features[good], items[good], scores[good]))
        self._n_candidates += int(good.sum())
        if self._n_candidates > _BUFFER + self.n_features * self.k:
            self._compact()

    def finish(self) -> tuple[Integer[np.ndarray, "n_features k"], Float[np.ndarray, "n_features k"]]:
        """The best items of each feature and their scores, best first; -1 and 0 where there are fewer than k."""
        self._compact()
        items = np.full((self.n_features, self.k), -1, dtype=np.int64)
        scores = np.zeros((self.n_features, self.k), dtype=np.float32)
        features, found, values = self._parts[0]
        rank = _rank_within(features)
        items[features, rank], scores[features, rank] = found, values
        return items, scores

    def _compact(self) -> None:
        empty = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
        features, items, scores = (np.concatenate(part) for part in zip(empty, *self._parts, strict=True))
        order = np.lexsort((items, -scores, features))
        features, items, scores = features[order], items[order], scores[order]
        rank = _rank_within(features)
        kept = rank < self.k
        self._parts = [(features[kept], items[kept], scores[kept])]
        self._n_candidates = int(kept.sum())
        full = rank == self.k - 1
        self._worst[features[full]] = scores[full]


@dataclass(frozen=True)
class FeatureCounts:
    """How often and how strongly each feature fires.

    Args:
        n_firing: number of tokens at which it fires.
        largest: strongest activation, 0 for a dead feature.
        mean: over the tokens at which it fires, 0 for a dead feature.
        by_kind: number of tokens at which it fires, by :class:`~sae_lens_maira.data.study.TokenKind`.
        histogram: number of tokens in equal bins from 0 to ``largest``.
    """

    n_firing: Integer[np.ndarray, " n_features"]
    largest: Float[np.ndarray, " n_features"]
    mean: Float[np.ndarray, " n_features"]
    by_kind: Integer[np.ndarray, "n_features n_kinds"]
    histogram: Integer[np.ndarray, "n_features n_bins"]


def count_firings(firings: csr_array, kinds: Integer[np.ndarray, " n_tokens"], n_bins: int = N_BINS) -> FeatureCounts:
    """Count in two passes; the bins of the histograms depend on the strongest activations."""
    n_features, n_kinds = n_columns(firings), len(TokenKind)
    n_firing = np.zeros(n_features, dtype=np.int64)
    total = np.zeros(n_features)
    largest = np.zeros(n_features, dtype=np.float32)
    by_kind = np.zeros(n_features * n_kinds, dtype=np.int64)
    for start, stop in chunks(firings):
        tokens, features, values = entries(firings, start, stop)
        n_firing += np.bincount(features, minlength=n_features)
        total += np.bincount(features, weights=values, minlength=n_features)
        np.maximum.at(largest, features, values)
        by_kind += np.bincount(features * np.int64(n_kinds) + kinds[tokens], minlength=n_features * n_kinds)
    histogram = np.zeros(n_features * n_bins, dtype=np.int64)
    for start, stop in chunks(firings):
        _, features, values = entries(firings, start, stop)
        bins = np.minimum((values / largest[features] * n_bins).astype(np.int64), n_bins - 1)
        histogram += np.bincount(features * np.int64(n_bins) + bins, minlength=n_features * n_bins)
    return FeatureCounts(
        n_firing,
        largest,
        total / np.maximum(n_firing, 1),
        by_kind.reshape(n_features, n_kinds),
        histogram.reshape(n_features, n_bins),
    )


def strongest(rows: csr_array, k: int, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The k rows in which each feature is strongest, and how strong it is there.

    Args:
        rows: activations, (tokens or studies) by features.
        k: rows per feature.
        keep: mask of the rows that may be chosen.
    """
    best = BestOfEach(n_columns(rows), k)
    for start, stop in chunks(rows):
        numbers, features, values = entries(rows, start, stop)
        mask = keep[numbers]
        best.add(features[mask], numbers[mask], values[mask])
    return best.finish()


@dataclass(frozen=True)
class Partners:
    """Co-activation of one feature with others, best first.

    Args:
        together: other features, the Jaccard index of the two sets of tokens, and the number of shared tokens.
        inside: finer features that fire almost only where this one does, and the share of their tokens where it does.
    """

    together: list[tuple[int, float, int]]
    inside: list[tuple[int, float]]


def partners(
    firings: csr_array,
    by_feature: csr_array,
    groups: Integer[np.ndarray, " n_features"],
    *,
    k: int = 12,
    min_share: float = 0.8,
    min_tokens: int = 5,
    min_lift: float = 2.0,
) -> Iterator[Partners]:
    """Co-activation of each feature in turn, counted over all tokens.

    Args:
        firings: tokens by features.
        by_feature: the same, transposed.
        groups: Matryoshka group of each feature; features in later groups are finer.
        k: length of each of the two lists.
        min_share: a finer feature is inside if the coarse one fires at no less than this share of its tokens.
        min_tokens: a finer feature that fires at fewer tokens is never inside.
        min_lift: that share must also be at least this many times the coarse feature's density, because a feature that
            fires everywhere contains all others by chance.
    """
    n_firing = np.diff(by_feature.indptr)
    for feature in range(n_columns(firings)):
        tokens = row(by_feature, feature)[0]
        shared = count_columns(firings, tokens)
        shared[feature] = 0
        others = np.flatnonzero(shared)
        jaccard = shared[others] / (n_firing[others] + len(tokens) - shared[others])
        best = np.lexsort((others, -jaccard))[:k]
        share = shared[others] / np.maximum(n_firing[others], 1)
        density = len(tokens) / max(n_rows(firings), 1)
        is_inside = (
            (groups[others] > groups[feature])
            & (n_firing[others] >= min_tokens)
            & (share >= min_share)
            & (share >= min_lift * density)
        )
        inner = others[is_inside]
        order = np.lexsort((inner, -n_firing[inner], -share[is_inside]))[:k]
        yield Partners(
            [(int(others[i]), float(jaccard[i]), int(shared[others[i]])) for i in best],
            [(int(inner[i]), float(share[is_inside][i])) for i in order],
        )


@torch.no_grad()
def decoder_neighbors(decoder: Float[Tensor, "n_features d_in"], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k other features with the most similar decoder rows, and the cosines, (n_features, k) each."""
    unit = torch.nn.functional.normalize(decoder.float(), dim=-1)
    k = min(k, len(unit) - 1)
    indices, cosines = [], []
    for start in range(0, len(unit), _CHUNK):
        similar = unit[start : start + _CHUNK] @ unit.T
        similar[torch.arange(len(similar)), start + torch.arange(len(similar))] = -torch.inf
        best = similar.topk(k, dim=-1)
        indices.append(best.indices)
        cosines.append(best.values)
    return torch.cat(indices).cpu().numpy(), torch.cat(cosines).cpu().numpy()


@dataclass(frozen=True)
class LogitEffects:
    """Tokens that each feature's decoder row promotes and suppresses most, (n_features, k) each, strongest first."""

    promoted: Integer[np.ndarray, "n_features k"]
    promoted_by: Float[np.ndarray, "n_features k"]
    suppressed: Integer[np.ndarray, "n_features k"]
    suppressed_by: Float[np.ndarray, "n_features k"]


@torch.no_grad()
def logit_effects(
    decoder: Float[Tensor, "n_features d_model"], unembedding: Float[Tensor, "d_model d_vocab"], k: int = 10
) -> LogitEffects:
    """Direct effect on the logits, as in sae-dashboard: decoder times unembedding, without the final norm."""
    parts: list[list[np.ndarray]] = [[], [], [], []]
    for start in range(0, len(decoder), _CHUNK):
        logits = decoder[start : start + _CHUNK].to(unembedding.device, unembedding.dtype) @ unembedding
        top, bottom = logits.float().topk(k, dim=-1), logits.float().topk(k, dim=-1, largest=False)
        for part, found in zip(parts, (top.indices, top.values, bottom.indices, bottom.values), strict=True):
            part.append(found.cpu().numpy())
    return LogitEffects(*(np.concatenate(part) for part in parts))


def _rank_within(features: np.ndarray) -> np.ndarray:
    """Position of each entry among the entries of its feature; entries are sorted by feature."""
    firsts = np.flatnonzero(np.diff(features, prepend=-1))
    lengths = np.diff(np.append(firsts, len(features)))
    return np.arange(len(features)) - np.repeat(firsts, lengths)
