"""Supervised references: what all activations, or all words, of a region say about a question together.

Logistic regression with an L2 penalty on standardized inputs, trained on the choosing half. The dense probe is the
ceiling for any one direction; bag of words and length show what the surface of the text gives away.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import minimize
from scipy.sparse import csr_array

from sae_lens_maira.concepts.choice import Pick, Scored, score_values
from sae_lens_maira.concepts.exam import Exam, Item, Reading
from sae_lens_maira.concepts.feature_sets import FeatureSet
from sae_lens_maira.concepts.pooled import rank, sort
from sae_lens_maira.concepts.ranked import auroc
from sae_lens_maira.data.study import TokenKind

PENALTY = 0.03
_N_ITERATIONS = 200
_MAX_WORDS = 4000


def logistic_scores(
    inputs: Any,
    positive: Bool[np.ndarray, " n_studies"],
    train: Bool[np.ndarray, " n_studies"],
    penalty: float = PENALTY,
) -> Float[np.ndarray, " n_studies"]:
    """Logits of a logistic regression: it minimizes the mean loss plus ``penalty / 2`` times the squared weights.

    Args:
        inputs: (n_studies, n_inputs), dense or sparse.
        positive: which studies answer yes.
        train: the studies to train on.
        penalty: of the weights; the bias has none.
    """
    x, y = inputs[train], np.where(positive[train], 1.0, -1.0)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = parameters[:-1], parameters[-1]
        margin = y * (x @ weights + bias)
        slope = -y / (1 + np.exp(np.clip(margin, -500, 500))) / len(y)
        value = np.logaddexp(0, -margin).mean() + penalty / 2 * (weights @ weights)
        return float(value), np.append(x.T @ slope + penalty * weights, slope.sum())

    start = np.zeros(x.shape[1] + 1)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": _N_ITERATIONS}).x
    return np.asarray(inputs @ found[:-1] + found[-1])


def dense_probe(coordinates: FeatureSet, exam: Exam, *, both_pools: bool = True) -> Iterator[Scored]:
    """Probes on the maxima and means of all coordinates, one for every item.

    Args:
        coordinates: the coordinates of the activations as features.
        exam: items and halves.
        both_pools: use maxima and means; means only if false.
    """
    blocks = list(coordinates.blocks())
    for reading in exam.readings:
        parts = []
        for _, block in blocks:
            for pool in ("max", "mean") if both_pools else ("mean",):
                ranked = rank(block, exam.segments, reading.segments, reading.n_tokens, pool)
                dense = np.zeros((len(exam.patients), block.n_features))
                dense[ranked.studies, ranked.features] = ranked.values
                parts.append(dense)
        inputs = np.concatenate(parts, axis=1)
        for group in reading.groups:
            train = group[0].asked & exam.is_choice
            scaled = (inputs - inputs[train].mean(0)) / (inputs[train].std(0) + 1e-6)
            for item in group:
                yield _scored(logistic_scores(scaled, item.positive, train), item, exam)


def bag_of_words(words: FeatureSet, exam: Exam) -> Iterator[Scored]:
    """Probes on which words a region holds, one for every item of a region with text."""
    for reading in exam.readings:
        if _has_text(reading, exam):
            inputs = _word_matrix(words, reading, exam)
            for group in reading.groups:
                for item in group:
                    train = item.asked & exam.is_choice
                    yield _scored(logistic_scores(inputs, item.positive, train, penalty=0.01), item, exam)


def length(exam: Exam) -> Iterator[Scored]:
    """Whether longer or shorter texts answer yes; the direction is chosen on the choosing half."""
    for reading in exam.readings:
        if _has_text(reading, exam):
            for item in (item for group in reading.groups for item in group):
                yield _scored(_directed(reading.n_tokens.astype(np.float64), item, exam), item, exam)


def _directed(values: Float[np.ndarray, " n_studies"], item: Item, exam: Exam) -> Float[np.ndarray, " n_studies"]:
    """Values, or their negatives if those rank the choosing half better."""
    train = item.asked & exam.is_choice
    ranked = sort(1, np.zeros(len(values), dtype=np.int64), np.arange(len(values)), values.astype(np.float32))
    return values if auroc(ranked, train, item.positive[:, None])[0, 0] >= 0.5 else -values


def _scored(values: Float[np.ndarray, " n_studies"], item: Item, exam: Exam) -> Scored:
    n = len(values)
    ranked = sort(1, np.zeros(n, dtype=np.int64), np.arange(n), values.astype(np.float32))
    train = item.asked & exam.is_choice
    chosen_on = float(auroc(ranked, train, item.positive[:, None])[0, 0])
    return score_values(Pick(item.number, -1, "mean", chosen_on), ranked, item, exam)


def _has_text(reading: Reading, exam: Exam) -> bool:
    return bool((exam.segments.kind[reading.segments] <= TokenKind.END).any())


def _word_matrix(words: FeatureSet, reading: Reading, exam: Exam) -> csr_array:
    """Which of the most frequent words each study's region holds, (n_studies, n_words)."""
    studies, features = [], []
    for numbers, block in words.blocks():
        ranked = rank(block, exam.segments, reading.segments, reading.n_tokens, "max")
        studies.append(ranked.studies)
        features.append(numbers[ranked.features])
    study, feature = np.concatenate(studies), np.concatenate(features)
    counts = np.bincount(feature, minlength=words.n_features)
    kept = np.flatnonzero(counts)[np.argsort(-counts[counts > 0], kind="stable")][:_MAX_WORDS]
    column = np.full(words.n_features, -1)
    column[kept] = np.arange(len(kept))
    is_kept = column[feature] >= 0
    shape = (len(exam.patients), len(kept))
    return csr_array((np.ones(is_kept.sum()), (study[is_kept], column[feature[is_kept]])), shape=shape)
