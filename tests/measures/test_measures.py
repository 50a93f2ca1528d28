"""Splits, intervals and ranks, against scipy's and by-hand numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap, mannwhitneyu

from sae_lens_maira.measures.intervals import Interval, bootstrap_mean, patient_weights, percentile_interval, wilson
from sae_lens_maira.measures.ranking import auroc
from sae_lens_maira.measures.splits import split_patients

_PARTS = {"choose": 0.5, "dose": 0.2, "score": 0.3}


@given(st.lists(st.text(max_size=3), max_size=40), st.integers(0, 5))
def test_no_patient_is_in_two_parts_and_none_is_lost(patients: list[str], seed: int) -> None:
    parts = split_patients(patients, _PARTS, seed)
    seen = [{patients[index] for index in own} for own in parts.values()]
    assert sum(map(len, seen)) == len(set(patients))
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(patients)))


@given(st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=20, unique=True), st.randoms())
def test_a_patients_part_does_not_depend_on_the_other_studies(patients: list[str], random) -> None:
    def part_of(ids: list[str]) -> dict[str, str]:
        return {ids[index]: name for name, own in split_patients(ids, _PARTS, 3).items() for index in own}

    some = random.sample(patients, random.randint(1, len(patients)))
    assert part_of(some) == {patient: part_of(patients)[patient] for patient in some}


def test_shares_are_those_asked_for_and_seeds_differ() -> None:
    patients = [f"p{number}" for number in range(4000)]
    parts = split_patients(patients, {"a": 0.6, "b": 0.2}, 0)
    assert abs(len(parts["a"]) - 2400) < 120
    assert abs(len(parts["b"]) - 800) < 100
    both = set(parts["a"].tolist()) & set(split_patients(patients, {"a": 0.6}, 1)["a"].tolist())
    assert abs(len(both) - 1440) < 150


@pytest.mark.parametrize("shares", [{"a": 0.7, "b": 0.4}, {"a": 0.0}, {"a": -0.1, "b": 0.5}])
def test_impossible_shares_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="sum to at most 1"):
        split_patients(["p"], shares, 0)


def test_wilson_by_hand() -> None:
    z, n, p = 1.959963984540054, 50, 0.2
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert wilson(10, 50) == pytest.approx(Interval(0.2, middle - half, middle + half))
    assert np.isnan(wilson(0, 0)).all()


def test_bootstrap_of_independent_studies_agrees_with_scipy() -> None:
    values = np.random.default_rng(0).gamma(2.0, size=80)
    ours = bootstrap_mean(values, n_resamples=20_000)
    theirs = bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_copies_of_a_patient_do_not_make_the_interval_narrower() -> None:
    values = np.random.default_rng(0).normal(size=40)
    once = bootstrap_mean(values)
    copied = bootstrap_mean(np.repeat(values, 9), np.repeat(np.arange(40), 9))
    assert copied == pytest.approx(once)
    naive = bootstrap_mean(np.repeat(values, 9))
    assert naive.high - naive.low < 0.5 * (once.high - once.low)


def test_missing_values_are_left_out() -> None:
    assert bootstrap_mean(np.array([1.0, np.nan, 3.0])).value == 2.0
    assert np.isnan(bootstrap_mean(np.array([np.nan]))).all()
    assert percentile_interval(0.5, np.array([np.nan, 0.2, 0.2])) == Interval(0.5, 0.2, 0.2)


def test_weights_draw_whole_patients() -> None:
    weights = patient_weights(["a", "b", "a", "c"], 200, seed=1)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert len(np.unique(weights, axis=0)) > 5


def test_auroc_is_mann_whitneys_u() -> None:
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 4, (60, 5)).astype(float), rng.random((60, 3)) < 0.4
    areas = auroc(scores, positive)
    for feature in range(5):
        for label in range(3):
            yes, no = scores[positive[:, label], feature], scores[~positive[:, label], feature]
            assert areas[feature, label] == pytest.approx(mannwhitneyu(yes, no).statistic / (len(yes) * len(no)))
