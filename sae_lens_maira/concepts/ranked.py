"""Exact AUROC, average precision and F1 of many features for many questions, from sorted sparse values.

All studies in which a feature is silent are one block of ties at the lower end, so only the entries are sorted:

    AUROC = (R - n1 (n1 + 1) / 2) / (n1 n0)      R: sum of the positive studies' mean ranks (Mann and Whitney 1947)
    average precision = sum over thresholds t, from high to low, of (recall_t - recall_{t-1}) * precision_t

Both treat ties as scikit-learn does: a pair of equal values counts one half, and equal values share one threshold.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from scipy.sparse import csr_array

from sae_lens_maira.concepts.pooled import Ranked


class Precision(NamedTuple):
    """Average precision of features, and the threshold at which F1 is largest.

    A threshold of minus infinity says yes in every study.
    """

    average: Float[np.ndarray, " n_features"]
    f1: Float[np.ndarray, " n_features"]
    threshold: Float32[np.ndarray, " n_features"]


class _Ties(NamedTuple):
    """Groups of equal values of one feature: first entry, entry behind the last, feature, and the feature's entries."""

    firsts: Int[np.ndarray, " n_groups"]
    ends: Int[np.ndarray, " n_groups"]
    features: Int[np.ndarray, " n_groups"]
    offsets: Int[np.ndarray, " n_features_plus_1"]


def auroc(
    ranked: Ranked, asked: Bool[np.ndarray, " n_studies"], positive: Bool[np.ndarray, "n_studies n_questions"]
) -> Float[np.ndarray, "n_features n_questions"]:
    """Area under the ROC curve of every feature for every question; ties count one half.

    Args:
        ranked: values of the features.
        asked: the studies that count; the same for all questions.
        positive: which studies answer yes; each question needs studies with both answers among those that count.
    """
    own = ranked.only(asked)
    n_asked, n_positive = int(asked.sum()), positive[asked].sum(axis=0)
    ties = _ties(own)
    n_entries = np.diff(ties.offsets)
    n_silent = n_asked - n_entries
    middle = (ties.firsts + ties.ends + 1) / 2 - ties.offsets[ties.features] + n_silent[ties.features]
    ranks = np.repeat(middle, ties.ends - ties.firsts)
    yes = positive.astype(np.float64)
    shape = (own.n_features, len(asked))
    sums = csr_array((ranks, own.studies, ties.offsets), shape=shape) @ yes
    n_firing = csr_array((np.ones(len(ranks)), own.studies, ties.offsets), shape=shape) @ yes
    sums += (n_positive - n_firing) * ((n_silent + 1) / 2)[:, None]
    return (sums - n_positive * (n_positive + 1) / 2) / (n_positive * (n_asked - n_positive))


def precision(
    ranked: Ranked, asked: Bool[np.ndarray, " n_studies"], positive: Bool[np.ndarray, " n_studies"]
) -> Precision:
    """Average precision of every feature for one question, and its best threshold.

    Args:
        ranked: values of the features.
        asked: the studies that count.
        positive: which studies answer yes.
    """
    own = ranked.only(asked)
    n_asked, n_positive = int(asked.sum()), int(positive[asked].sum())
    ties = _ties(own)
    before = np.concatenate([[0], np.cumsum(positive[own.studies])])
    ends = ties.offsets[ties.features + 1]
    hits = before[ends] - before[ties.firsts]
    n_above = ends - ties.firsts
    gained = (before[ties.ends] - before[ties.firsts]) / n_positive
    average = np.bincount(ties.features, weights=gained * hits / n_above, minlength=own.n_features)
    n_firing = before[ties.offsets[1:]] - before[ties.offsets[:-1]]
    average = average + (n_positive - n_firing) / n_asked
    f1 = np.full(own.n_features, 2 * n_positive / (n_asked + n_positive))
    threshold = np.full(own.n_features, -np.inf, dtype=np.float32)
    at_group = 2 * hits / (n_above + n_positive)
    np.maximum.at(f1, ties.features, at_group)
    is_best = at_group >= f1[ties.features]
    threshold[ties.features[is_best]] = own.values[ties.firsts[is_best]]  # ascending, so the highest one stays
    return Precision(average, f1, threshold)


def f1_at(
    ranked: Ranked,
    asked: Bool[np.ndarray, " n_studies"],
    positive: Bool[np.ndarray, " n_studies"],
    threshold: Float32[np.ndarray, " n_features"],
) -> Float[np.ndarray, " n_features"]:
    """F1 of every feature at a threshold that was chosen elsewhere."""
    own = ranked.only(asked)
    says_yes = own.values >= threshold[own.features]
    n_yes = np.bincount(own.features[says_yes], minlength=own.n_features)
    hits = np.bincount(own.features[says_yes], weights=positive[own.studies[says_yes]], minlength=own.n_features)
    n_positive = positive[asked].sum()
    always = np.isneginf(threshold)
    n_yes, hits = np.where(always, asked.sum(), n_yes), np.where(always, n_positive, hits)
    return 2 * hits / (n_yes + n_positive)


def _ties(own: Ranked) -> _Ties:
    offsets = np.concatenate([[0], np.cumsum(np.bincount(own.features, minlength=own.n_features))]).astype(np.int64)
    if not len(own.values):
        none = np.zeros(0, dtype=np.int64)
        return _Ties(none, none, none, offsets)
    is_first = np.ones(len(own.values), dtype=bool)
    is_first[1:] = (np.diff(own.features) != 0) | (np.diff(own.values) != 0)
    firsts = np.flatnonzero(is_first)
    ends = np.append(firsts[1:], len(own.values))
    return _Ties(firsts, ends, own.features[firsts].astype(np.int64), offsets)
