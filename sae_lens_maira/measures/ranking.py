"""Scores that depend only on the order of values."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata


def auroc(
    scores: Float[np.ndarray, "n_studies n_features"], positive: Bool[np.ndarray, "n_studies n_labels"]
) -> Float[np.ndarray, "n_features n_labels"]:
    """Area under the ROC curve of every feature for every label; ties count as one half.

    Args:
        scores: score of each feature in each study; all are finite.
        positive: which studies have each label; each label needs studies with it and without it.
    """
    ranks = rankdata(scores, axis=0).T
    n_positive = positive.sum(axis=0)
    sums = ranks @ positive
    return (sums - n_positive * (n_positive + 1) / 2) / (n_positive * (len(positive) - n_positive))
