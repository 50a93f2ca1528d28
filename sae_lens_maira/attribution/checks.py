"""Whether a map shows what the feature depends on: tested by erasing, not by looking.

- Deletion (Petsiuk et al. 2018, RISE, arXiv 1806.07421, section 3.3): patches are erased in the map's order, and the
  feature should fall early. The score is the mean, over the erased shares :data:`SHARES`, of what is left of the
  feature; low is good. Insertion keeps only the first patches instead of erasing them; high is good.
- Erasing inside a box should lower the feature, and erasing as many patches outside should not.

"Left" is (v - v_none) / (v_all - v_none), with the feature's value v, v_all for the whole image and v_none for the mean
image. It is not defined where the image does not raise the feature. What counts is the comparison with a random map and
with a center prior, which know nothing of the image.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import pearsonr

from sae_lens_maira.attribution.erasing import Domain, Target

SHARES = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Shares of an image's patches that are erased or kept; at least one patch."""


class Curves(NamedTuple):
    """See the module's docstring."""

    deletion: float
    insertion: float


def curves(target: Target, values: Float[np.ndarray, "n_maps n_patches"], domain: Domain) -> list[Curves]:
    """Deletion and insertion of several maps of one feature.

    Args:
        target: with the feature alone.
        values: the maps.
        domain: where patches are erased.
    """
    n_patches = values.shape[1]
    counts = [max(1, round(share * n_patches)) for share in SHARES]
    ranks = np.argsort(np.argsort(-values, axis=1, kind="stable"), axis=1)
    erased = np.stack([rank < count for rank in ranks for count in counts])
    found = _left(target, np.concatenate([erased, ~erased]), domain).reshape(2, len(values), len(counts)).mean(axis=2)
    return [Curves(float(deletion), float(insertion)) for deletion, insertion in found.T]


class InsideOutside(NamedTuple):
    """What is left of a feature when a box is erased, and when as many patches outside are."""

    inside: float
    outside: float


def erase_boxes(
    target: Target, inside: Bool[np.ndarray, " n_patches"], domain: Domain, rng: np.random.Generator, n_draws: int = 4
) -> InsideOutside:
    """Erase the patches of a box, and equally many random patches outside, the mean of several draws.

    Boxes that cover more than half of the image leave too few patches outside: NaN.
    """
    n_inside = int(inside.sum())
    outside = np.flatnonzero(~inside)
    if n_inside > len(outside):
        return InsideOutside(float("nan"), float("nan"))
    masks = np.zeros((1 + n_draws, len(inside)), dtype=bool)
    masks[0] = inside
    for mask in masks[1:]:
        mask[rng.choice(outside, n_inside, replace=False)] = True
    found = _left(target, masks, domain)
    return InsideOutside(float(found[0]), float(found[1:].mean()))


def agreement(
    estimates: Float[np.ndarray, "n_features n_patches"], exact: Float[np.ndarray, "n_features n_patches"]
) -> Float[np.ndarray, " n_features"]:
    """The correlation of each feature's estimated map with the exact one; NaN if one of them is constant."""
    return np.array(
        [
            pearsonr(estimate, truth)[0] if estimate.std() > 0 and truth.std() > 0 else np.nan
            for estimate, truth in zip(estimates, exact, strict=True)
        ]
    )


def _left(
    target: Target, masks: Bool[np.ndarray, "n_masks n_patches"], domain: Domain
) -> Float[np.ndarray, " n_masks"]:
    whole = np.zeros((2, masks.shape[1]), dtype=bool)
    whole[1] = True
    values = (
        target.values_without(torch.from_numpy(np.concatenate([whole, masks])), domain)[:, 0].double().cpu().numpy()
    )
    full, none = values[:2]
    return (values[2:] - none) / (full - none) if full > none else np.full(len(masks), np.nan)
