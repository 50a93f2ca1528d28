"""Detection scores: does an explanation tell the units in which a feature is on from those in which it is silent?

Balanced accuracy is the mean of sensitivity (over units in which it is on) and specificity (over silent ones), so that
"always no" and "always yes" score exactly 0.5. A judge that abstains is wrong there. AUROC uses the probabilities, in
which an abstention counts as one half. Intervals are percentile bootstraps over patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from sae_lens_maira.interpret.examples import SILENT_KINDS, SilentKind
from sae_lens_maira.measures.intervals import Interval, patient_weights, percentile_interval

N_RESAMPLES = 500
_NOTHING = Interval(np.nan, np.nan, np.nan)


@dataclass(frozen=True)
class Detection:
    """How well one explanation detects one feature.

    Args:
        balanced_accuracy: with its interval.
        auroc: with its interval.
        sensitivity: share of the units with the feature on that were answered with yes.
        specificity: share of the silent units that were answered with no.
        by_kind: balanced accuracy against each kind of silent unit alone.
        n_on: units in which the feature is on.
        n_silent: silent units.
        n_abstained: judgements without an answer, which count as wrong.
    """

    balanced_accuracy: Interval
    auroc: Interval
    sensitivity: float
    specificity: float
    by_kind: dict[SilentKind, float]
    n_on: int
    n_silent: int
    n_abstained: int


def score_detection(
    is_on: Bool[np.ndarray, " n_examples"],
    probabilities: Float[np.ndarray, " n_examples"],
    patients: Sequence[str] | np.ndarray,
    kinds: Sequence[str],
    threshold: float = 0.5,
    seed: int = 0,
) -> Detection:
    """Score the judgements of one explanation.

    Args:
        is_on: whether the feature is on in each unit.
        probabilities: the judge's, that the explanation is true of each unit; NaN where it abstained.
        patients: of each unit.
        kinds: of each unit; ``on`` or a kind of silent unit.
        threshold: probability from which the answer is yes.
        seed: of the bootstrap.
    """
    abstained = np.isnan(probabilities)
    correct = np.where(is_on, probabilities >= threshold, probabilities < threshold) & ~abstained
    n_on, n_silent = int(is_on.sum()), int((~is_on).sum())
    names = np.array(kinds, dtype=object)
    sensitivity = float(correct[is_on].mean()) if n_on else np.nan
    by_kind: dict[SilentKind, float] = {
        kind: float((sensitivity + correct[names == kind].mean()) / 2) for kind in SILENT_KINDS if (names == kind).any()
    }
    if not n_on or not n_silent:
        specificity = float(correct[~is_on].mean()) if n_silent else np.nan
        return Detection(_NOTHING, _NOTHING, sensitivity, specificity, {}, n_on, n_silent, int(abstained.sum()))
    weights = patient_weights(patients, N_RESAMPLES, seed).astype(np.float64)
    ones = np.ones((1, len(is_on)))
    wins = _wins(np.where(abstained, 0.5, probabilities), is_on)
    return Detection(
        percentile_interval(float(_balanced(ones, correct, is_on)[0]), _balanced(weights, correct, is_on)),
        percentile_interval(float(_areas(ones, wins, is_on)[0]), _areas(weights, wins, is_on)),
        sensitivity,
        float(correct[~is_on].mean()),
        by_kind,
        n_on,
        n_silent,
        int(abstained.sum()),
    )


def shuffled_score(
    is_on: Bool[np.ndarray, " n_examples"],
    probabilities: Float[np.ndarray, " n_examples"],
    threshold: float = 0.5,
    seed: int = 0,
    n_shuffles: int = 50,
) -> float:
    """Balanced accuracy of the same judgements when "on" and "silent" are permuted: 0.5 unless something leaks."""
    rng = np.random.default_rng(seed)
    abstained = np.isnan(probabilities)
    yes, ones = probabilities >= threshold, np.ones((1, len(is_on)))
    values = []
    for _ in range(n_shuffles):
        flags = rng.permutation(is_on)
        values.append(_balanced(ones, (yes == flags) & ~abstained, flags)[0])
    return float(np.mean(values))


def balanced_accuracy(is_true: Bool[np.ndarray, " n"], says_yes: Bool[np.ndarray, " n"]) -> float:
    """Mean of the shares of true and of false pairs that are answered rightly."""
    return float(_balanced(np.ones((1, len(is_true))), says_yes == is_true, is_true)[0])


def _balanced(
    weights: Float[np.ndarray, "n_resamples n"], correct: Bool[np.ndarray, " n"], is_on: Bool[np.ndarray, " n"]
) -> Float[np.ndarray, " n_resamples"]:
    """Weighted balanced accuracy; NaN where a resample lacks one of the two sides."""
    with np.errstate(invalid="ignore", divide="ignore"):
        sides = [weights[:, side] @ correct[side] / weights[:, side].sum(axis=1) for side in (is_on, ~is_on)]
    return (sides[0] + sides[1]) / 2


def _wins(probabilities: Float[np.ndarray, " n"], is_on: Bool[np.ndarray, " n"]) -> Float[np.ndarray, "n_on n_silent"]:
    """1 where a unit with the feature on has the higher probability, one half for ties."""
    difference = probabilities[is_on][:, None] - probabilities[~is_on][None, :]
    return (difference > 0) + 0.5 * (difference == 0)


def _areas(
    weights: Float[np.ndarray, "n_resamples n"],
    wins: Float[np.ndarray, "n_on n_silent"],
    is_on: Bool[np.ndarray, " n"],
) -> Float[np.ndarray, " n_resamples"]:
    """Weighted area under the ROC curve."""
    on, silent = weights[:, is_on], weights[:, ~is_on]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.einsum("ri,ij,rj->r", on, wins, silent) / (on.sum(axis=1) * silent.sum(axis=1))
