"""k-sparse probing: how well a concept is read from the k latents that differ most (Gurnee et al. 2023; SAEBench).

1. On choosing studies, latents are ranked by the difference of their means with and without the concept, in units of
   their standard deviation.
2. A logistic regression of the first k is fitted on the same studies.
3. Its area under the ROC curve is measured on held-out studies.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from sae_lens_maira.measures.ranking import auroc

SIZES = (1, 2, 5, 10)
MIN_STUDIES = 5
_STEPS, _RIDGE = 30, 1.0


def fit_logistic(
    values: Float[np.ndarray, "n_studies k"], positive: Bool[np.ndarray, " n_studies"], ridge: float = _RIDGE
) -> Float[np.ndarray, " k_plus_1"]:
    """Weights of a logistic regression, the intercept last, by Newton's method.

    It minimizes the negative log likelihood plus ``ridge / 2`` times the squared weights without the intercept, as
    scikit-learn's ``LogisticRegression(C=1 / ridge)`` does.

    Args:
        values: standardized features.
        positive: which studies are positive.
        ridge: strength of the penalty.
    """
    design = np.column_stack([values, np.ones(len(values))]).astype(np.float64)
    penalty = np.full(design.shape[1], ridge)
    penalty[-1] = 0
    weights = np.zeros(design.shape[1])
    for _ in range(_STEPS):
        rates = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        gradient = design.T @ (rates - positive) + penalty * weights
        curvature = (design * np.maximum(rates * (1 - rates), 1e-9)[:, None]).T @ design + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        weights -= step
        if np.abs(step).max() < 1e-8:
            break
    return weights


def probe_aurocs(
    train: Float[np.ndarray, "n_train d_sae"],
    train_truth: Bool[np.ndarray, "n_train n_concepts"],
    test: Float[np.ndarray, "n_test d_sae"],
    test_truth: Bool[np.ndarray, "n_test n_concepts"],
    sizes: tuple[int, ...] = SIZES,
) -> Float[np.ndarray, "n_sizes n_concepts"]:
    """AUROC on the test studies of a probe of each size for each concept; NaN for a concept with too few studies.

    Args:
        train: each choosing study's strongest activation of each latent.
        train_truth: which of them show each concept.
        test: the same of held-out studies.
        test_truth: which of them show each concept.
        sizes: numbers of latents.
    """
    mean, spread = train.mean(axis=0), train.std(axis=0)
    alive = spread > 0
    scale = np.where(alive, spread, 1)
    train_z, test_z = (train - mean) / scale, (test - mean) / scale
    found = np.full((len(sizes), train_truth.shape[1]), np.nan)
    for concept in range(train_truth.shape[1]):
        positive, wanted = train_truth[:, concept], test_truth[:, concept]
        if min(positive.sum(), (~positive).sum(), wanted.sum(), (~wanted).sum()) < MIN_STUDIES:
            continue
        differences = np.abs(train_z[positive].mean(axis=0) - train_z[~positive].mean(axis=0))
        order = np.argsort(-np.where(alive, differences, -1), kind="stable")
        for row, size in enumerate(sizes):
            chosen = order[:size]
            weights = fit_logistic(train_z[:, chosen], positive)
            scores = test_z[:, chosen] @ weights[:-1]
            found[row, concept] = auroc(scores[:, None], wanted[:, None])[0, 0]
    return found
