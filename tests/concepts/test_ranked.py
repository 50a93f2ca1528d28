"""Scores of sparse values against definitions, by-hand numbers and scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens_maira.concepts.pooled import Ranked, sort
from sae_lens_maira.concepts.ranked import auroc, f1_at, precision
from sae_lens_maira.concepts.resampled import resampled_scores
from sae_lens_maira.measures.intervals import patient_weights


def ranked_of(values: np.ndarray) -> Ranked:
    """Columns of values as entries; zeros are left out, as a sparse feature leaves them out."""
    features, studies = np.nonzero(values.T)
    return sort(values.shape[1], features, studies, values.T[features, studies].astype(np.float32))


def pair_auroc(values: np.ndarray, positive: np.ndarray) -> float:
    """The share of pairs in order, from every pair."""
    gap = values[positive][:, None] - values[~positive][None]
    return float(((gap > 0) + 0.5 * (gap == 0)).mean())


def threshold_scores(values: np.ndarray, positive: np.ndarray) -> tuple[float, float, float]:
    """Average precision, best F1 and its threshold, from every threshold."""
    average, last, best, best_at = 0.0, 0.0, -1.0, np.nan
    for threshold in sorted(set(values.tolist()), reverse=True):
        called = values >= threshold
        recall, exactness = positive[called].sum() / positive.sum(), positive[called].mean()
        average += (recall - last) * exactness
        last = recall
        f1 = 2 * positive[called].sum() / (called.sum() + positive.sum())
        if f1 > best:
            best, best_at = f1, threshold
    return average, best, best_at


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n = draw(st.integers(4, 24))
    values = draw(
        st.lists(st.lists(st.sampled_from([0.0, 0.0, 0.5, 1.0, 2.5]), min_size=3, max_size=3), min_size=n, max_size=n)
    )
    positive = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    asked = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    positive[:2], asked[:2] = [True, False], [True, True]
    return np.array(values), np.array(positive), np.array(asked)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_scores_are_their_definitions(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    values, positive, asked = case
    ranked = ranked_of(values)
    areas = auroc(ranked, asked, np.stack([positive, ~positive], axis=1))
    found = precision(ranked, asked, positive)
    for feature in range(3):
        own, truth = values[asked, feature], positive[asked]
        assert areas[feature, 0] == pytest.approx(pair_auroc(own, truth))
        assert areas[feature, 1] == pytest.approx(1 - areas[feature, 0])
        average, f1, at = threshold_scores(own, truth)
        assert found.average[feature] == pytest.approx(average)
        assert found.f1[feature] == pytest.approx(f1)
        assert found.threshold[feature] == (at if at > 0 else -np.inf)
    assert f1_at(ranked, asked, positive, found.threshold) == pytest.approx(found.f1)


@settings(max_examples=60, deadline=None)
@given(cases(), st.integers(0, 5))
def test_resampled_scores_are_those_of_repeated_studies(
    case: tuple[np.ndarray, np.ndarray, np.ndarray], seed: int
) -> None:
    values, positive, asked = case
    weights = patient_weights(np.arange(len(values)) // 2, 5, seed)
    threshold = 1.0 if seed % 2 else -np.inf
    found = resampled_scores(ranked_of(values[:, :1]), asked, positive, threshold, weights.T.astype(np.float64))
    for resample, times in enumerate(weights):
        repeated = np.repeat(np.arange(len(values)), times)
        repeated = repeated[asked[repeated]]
        own, truth = values[repeated, 0], positive[repeated]
        if truth.all() or not truth.any():
            assert np.isnan(found.auroc[resample])
            continue
        assert found.auroc[resample] == pytest.approx(pair_auroc(own, truth))
        assert found.average_precision[resample] == pytest.approx(threshold_scores(own, truth)[0])
        called = own >= threshold
        expected = 2 * truth[called].sum() / (called.sum() + truth.sum())
        assert found.f1[resample] == pytest.approx(expected)


def test_by_hand() -> None:
    # Silent, silent, 1, 1, 2: the positives are one silent study, one at 1, and the one at 2.
    values = np.array([[0.0], [0.0], [1.0], [1.0], [2.0]])
    positive = np.array([True, False, True, False, True])
    asked = np.ones(5, dtype=bool)
    # Pairs: silent-silent 1/2, silent-one 0; one-silent 1, one-one 1/2; two-silent 1, two-one 1. Together 4 of 6.
    assert auroc(ranked_of(values), asked, positive[:, None]) == pytest.approx(np.array([[4 / 6]]))
    # Thresholds 2, 1, silent: recall 1/3, 2/3, 1; precision 1, 2/3, 3/5.
    found = precision(ranked_of(values), asked, positive)
    assert found.average == pytest.approx(np.array([(1 + 2 / 3 + 3 / 5) / 3]))
    # F1: 2/4, 4/6, 6/8; saying yes everywhere is best.
    assert (found.f1[0], found.threshold[0]) == (pytest.approx(0.75), -np.inf)


def test_equal_to_scikit_learn() -> None:
    """Numbers of scikit-learn 1.7.2: roc_auc_score and average_precision_score of these values."""
    rng = np.random.default_rng(7)
    values = np.where(rng.random((200, 4)) < 0.6, 0, np.round(rng.random((200, 4)), 2))
    positive = rng.random(200) < 0.15 + 0.5 * values[:, 1]
    asked = np.ones(200, dtype=bool)
    areas = auroc(ranked_of(values), asked, positive[:, None])[:, 0]
    assert areas == pytest.approx(np.array(AREAS), abs=1e-12)
    assert precision(ranked_of(values), asked, positive).average == pytest.approx(np.array(PRECISIONS), abs=1e-12)


AREAS = [0.46093333333333325, 0.7047333333333334, 0.5172, 0.4731333333333333]
PRECISIONS = [0.2274896947922375, 0.4228384554417328, 0.26170700068856506, 0.2741653732687886]


def test_signed_values_are_sorted() -> None:
    values = np.array([-2.5, -0.0, 0.0, 3.0, -1.0, np.float32(1e-30)], dtype=np.float32)
    ranked = sort(1, np.zeros(6, dtype=np.int64), np.arange(6), values)
    assert ranked.values.tolist() == sorted(values.tolist())
