"""Statistics of activations and training steps, for the log and for initialization."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lens_maira.sae.prefixes import sizes_from_widths


@torch.no_grad()
def geometric_median(
    points: Float[Tensor, "n d"], max_iterations: int = 100, tolerance: float = 1e-5
) -> Float[Tensor, " d"]:
    """Weiszfeld's iteration from the mean, as dictionary_learning starts its decoder bias."""
    guess = points.mean(0)
    for _ in range(max_iterations):
        previous = guess
        # A point equal to the guess would have infinite weight; the floor keeps it finite.
        weights = 1 / (points - guess).norm(dim=1).clamp(min=1e-12)
        guess = (weights / weights.sum()) @ points
        if (guess - previous).norm() < tolerance:
            break
    return guess


@torch.no_grad()
def mean_to_std(x: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """``|mean| / |std|`` over the tokens of a batch. Above about 1, one direction dominates the SAE's first steps."""
    return x.mean(0).norm() / x.std(0, correction=0).norm()


@torch.no_grad()
def count_firings(activations: Float[Tensor, "n_tokens d_sae"]) -> Float[Tensor, " d_sae"]:
    """Number of tokens on which each latent is active, from dense or sparse COO activations."""
    if not activations.is_sparse:
        return (activations > 0).sum(0).float()
    latents = activations.coalesce().indices()[1]
    return torch.bincount(latents, minlength=activations.shape[1]).float()


@torch.no_grad()
def step_metrics(
    x: Float[Tensor, "n_tokens d_in"],
    prefix_losses: Float[Tensor, " n_prefixes"],
    prefix_names: Sequence[str],
    latent_counts: Float[Tensor, " d_sae"],
    dead: Bool[Tensor, " d_sae"] | None,
    group_widths: Sequence[int],
) -> dict[str, Float[Tensor, ""]]:
    """Explained variance of each prefix; mean active latents per token and dead share of each group."""
    variance = (x - x.mean(0)).pow(2).sum(-1).mean()
    metrics: dict[str, Float[Tensor, ""]] = {"activation_mean_to_std": mean_to_std(x)}
    for name, loss in zip(prefix_names, prefix_losses, strict=True):
        metrics[f"explained_variance_prefix_{name}"] = 1 - loss / variance
    sizes = sizes_from_widths(group_widths)
    for width, counts in zip(group_widths, latent_counts.split(sizes), strict=True):
        metrics[f"l0_group_{width}"] = counts.sum() / x.shape[0]
    if dead is not None:
        for width, mask in zip(group_widths, dead.split(sizes), strict=True):
            metrics[f"dead_share_group_{width}"] = mask.float().mean()
    return metrics
