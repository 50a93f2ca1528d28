"""Confidence intervals: Wilson's for shares, and the bootstrap over patients for everything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

N_RESAMPLES = 2000
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """An estimate and its confidence interval; all three are NaN if there is nothing to estimate from."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def wilson(n_successes: int, n_trials: int, confidence: float = CONFIDENCE) -> Interval:
    """A share and its Wilson score interval.

    Args:
        n_successes: number of successes.
        n_trials: number of independent trials.
        confidence: of the interval.
    """
    from scipy.stats import binomtest

    if not n_trials:
        return Interval(np.nan, np.nan, np.nan)
    found = binomtest(n_successes, n_trials).proportion_ci(confidence, method="wilson")
    return Interval(n_successes / n_trials, float(found.low), float(found.high))


def patient_weights(
    patients: Sequence[Any] | np.ndarray, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> Int[np.ndarray, "n_resamples n_studies"]:
    """How often each study occurs in each bootstrap resample, in which whole patients are drawn with replacement.

    A weighted statistic with one row of weights is that statistic of one resample.

    Args:
        patients: the patient of each study.
        n_resamples: number of resamples.
        seed: of the draws.
    """
    _, patient_of_study = np.unique(np.asarray(patients), return_inverse=True)
    n_patients = int(patient_of_study.max(initial=-1)) + 1
    if not n_patients:
        return np.zeros((n_resamples, 0), dtype=np.int64)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(n_patients, np.full(n_patients, 1 / n_patients), size=n_resamples)
    return drawn[:, patient_of_study]


def bootstrap_mean(
    values: Float[np.ndarray, " n_studies"],
    patients: Sequence[Any] | np.ndarray | None = None,
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Interval:
    """The mean over studies, with a percentile bootstrap over patients.

    Args:
        values: one value per study; NaN where there is none.
        patients: the patient of each study; every study is a patient of its own if None.
        n_resamples: number of resamples.
        seed: of the draws.
        confidence: of the interval.
    """
    known = np.isfinite(values)
    if not known.any():
        return Interval(np.nan, np.nan, np.nan)
    kept = np.asarray(values, dtype=np.float64)[known]
    groups = np.arange(len(kept)) if patients is None else np.asarray(patients)[known]
    weights = patient_weights(groups, n_resamples, seed)
    means = weights @ kept / weights.sum(axis=1)
    return percentile_interval(float(kept.mean()), means, confidence)


def percentile_interval(
    value: float, resampled: Float[np.ndarray, " n_resamples"], confidence: float = CONFIDENCE
) -> Interval:
    """The interval that the middle of a statistic's resampled values spans.

    Args:
        value: the statistic of the data.
        resampled: the statistic of each resample; NaN where a resample does not define it.
        confidence: share of the resampled values inside of the interval.
    """
    if not np.isfinite(resampled).any():
        return Interval(value, np.nan, np.nan)
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(resampled, [tail, 1 - tail])
    return Interval(value, float(low), float(high))
