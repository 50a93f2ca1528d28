"""AUROC, average precision and F1 of one feature in bootstrap resamples of patients.

A resample gives each study a weight, the number of times that its patient was drawn. Weighted counts of positive and
negative studies, cumulated over the sorted values, give all three scores of all resamples at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from sae_lens_maira.concepts.pooled import Ranked


class Resampled(NamedTuple):
    """Scores of one feature in each resample."""

    auroc: Float[np.ndarray, " n_resamples"]
    average_precision: Float[np.ndarray, " n_resamples"]
    f1: Float[np.ndarray, " n_resamples"]


def resampled_scores(
    ranked: Ranked,
    asked: Bool[np.ndarray, " n_studies"],
    positive: Bool[np.ndarray, " n_studies"],
    threshold: float,
    weights: Float[np.ndarray, "n_studies n_resamples"],
) -> Resampled:
    """Scores of one feature in each resample; NaN where a resample has only one answer.

    Args:
        ranked: values of one feature.
        asked: the studies that count.
        positive: which studies answer yes.
        threshold: at which F1 is computed; minus infinity says yes everywhere.
        weights: how often each study is in each resample.
    """
    own = ranked.only(asked)
    yes, no = positive & asked, ~positive & asked
    n_yes, n_no = (_total(weights, mask) for mask in (yes, no))
    is_yes = positive[own.studies][:, None]
    drawn = weights[own.studies]
    hits, misses = (_from_top(drawn * mask) for mask in (is_yes, ~is_yes))
    firsts = np.flatnonzero(np.diff(own.values, prepend=np.nan) != 0)
    # Row g counts the studies at or above the g-th distinct value; row 0 counts all studies, the silent ones included.
    above_yes = np.concatenate([n_yes[None], hits[firsts], np.zeros_like(n_yes)[None]])
    above_no = np.concatenate([n_no[None], misses[firsts], np.zeros_like(n_no)[None]])
    if len(own.values) == int(asked.sum()):
        above_yes, above_no = above_yes[1:], above_no[1:]  # no study is silent
    at_yes, at_no = above_yes[:-1] - above_yes[1:], above_no[:-1] - above_no[1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        won = (at_yes * (n_no - above_no[:-1] + at_no / 2)).sum(axis=0)
        areas = won / (n_yes * n_no)
        precision = np.nan_to_num(above_yes[:-1] / (above_yes[:-1] + above_no[:-1]))
        average = (at_yes * precision).sum(axis=0) / n_yes
        if np.isneginf(threshold):
            caught, called = n_yes, n_yes + n_no
        else:
            first = int(np.searchsorted(own.values, np.float32(threshold)))
            nothing = np.zeros_like(n_yes)
            caught = hits[first] if first < len(hits) else nothing
            called = caught + (misses[first] if first < len(hits) else nothing)
        f1 = np.where(n_yes > 0, 2 * caught / (called + n_yes), np.nan)
    return Resampled(areas, average, f1)


def _total(weights: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return mask.astype(weights.dtype) @ weights


def _from_top(drawn: np.ndarray) -> np.ndarray:
    """Cumulated counts from the highest value down."""
    return np.cumsum(drawn[::-1], axis=0)[::-1]
