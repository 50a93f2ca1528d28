"""Monosemanticity score: how alike the studies are in which a latent fires (Pach et al. 2025, arXiv 2504.02821).

For activations a_n scaled to [0, 1] per latent and unit embeddings e_n, it is the mean of the cosines of all pairs of
studies, weighted by the products of their activations::

    sum_{n != m} a_n a_m <e_n, e_m> / sum_{n != m} a_n a_m

With s = sum_n a_n e_n this is ``(|s|^2 - sum a_n^2) / ((sum a_n)^2 - sum a_n^2)``: linear in the number of studies.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float


def monosemanticity(
    activations: Float[np.ndarray, "n_studies d_sae"], embeddings: Float[np.ndarray, "n_studies d_embedding"]
) -> Float[np.ndarray, " d_sae"]:
    """The score of each latent; NaN for one that fires in fewer than two studies.

    Args:
        activations: each study's activation of each latent.
        embeddings: of the studies; they are scaled to norm 1.
    """
    low, high = activations.min(axis=0), activations.max(axis=0)
    scaled = ((activations - low) / np.where(high > low, high - low, 1)).astype(np.float64)
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    units = embeddings / np.where(norms > 0, norms, 1)
    lengths = (units**2).sum(axis=1)
    own = scaled**2
    above = ((scaled.T @ units) ** 2).sum(axis=1) - own.T @ lengths
    below = scaled.sum(axis=0) ** 2 - own.sum(axis=0)
    is_defined = (scaled > 0).sum(axis=0) >= 2
    return np.where(is_defined, above / np.where(is_defined, below, 1), np.nan)


def concept_vectors(truth: Bool[np.ndarray, "n_studies n_concepts"]) -> Float[np.ndarray, "n_studies n_concepts"]:
    """Embeddings that are exact: which concepts a study shows, minus how often studies show them."""
    return truth - truth.mean(axis=0)
