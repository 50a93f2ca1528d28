"""The dense formula, in plain PyTorch and as short as it gets; every kernel is held against it."""

from collections.abc import Sequence

import torch
from torch import Tensor


def top_mask(activations: Tensor, n_wanted: int) -> Tensor:
    """The largest positive activations of the batch; equal ones in the order of (token, latent)."""
    flat = activations.detach().flatten()
    order = torch.sort(flat, descending=True, stable=True).indices[:n_wanted]
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[order] = True
    return mask.view_as(activations) & (activations > 0)


def matryoshka_loss(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    n_wanted: int,
    widths: Sequence[int],
    weights: Sequence[float],
    rescale: bool = False,
    per_token: bool = False,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """(weighted loss, full reconstruction, dense activations, prefix losses)."""
    norms = W_dec.norm(dim=-1) if rescale else torch.ones(len(W_dec), dtype=x.dtype)
    hidden = ((x - b_dec) @ W_enc + b_enc) * norms
    mask = torch.cat([top_mask(row[None], n_wanted) for row in hidden]) if per_token else top_mask(hidden, n_wanted)
    activations = torch.where(mask, hidden, 0.0)
    decoded = torch.where(mask, hidden / norms, 0.0)
    losses, reconstruction = [], b_dec
    for width in widths:
        reconstruction = decoded[:, :width] @ W_dec[:width] + b_dec
        losses.append((reconstruction - x).pow(2).sum(-1).mean())
    loss = sum((w * item for w, item in zip(weights, losses, strict=True)), torch.zeros((), dtype=x.dtype))
    return loss, reconstruction, activations, losses
