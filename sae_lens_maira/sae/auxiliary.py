"""Auxiliary losses: dead latents learn to reconstruct the residual that the live ones leave.

Both libraries take each token's largest pre-activations among the dead latents and reconstruct the residual from them:

- SAE-Lens takes them as they are and scales the loss by ``min(n_dead / (d_in / 2), 1)``;
- dictionary_learning rectifies them and divides the loss by the residual's variance.

Only the dead latents' columns are encoded and decoded, so the cost follows the number of dead latents.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import assert_never

from sae_lens_maira.sae.passes import Parameters

AuxLoss = Literal["sae_lens", "dictionary_learning"]


def auxiliary_loss(
    x: Float[Tensor, "n_tokens d_in"],
    parameters: Parameters,
    norms: Float[Tensor, " d_sae"] | None,
    dead: Bool[Tensor, " d_sae"],
    residual: Float[Tensor, "n_tokens d_in"],
    style: AuxLoss,
) -> Float[Tensor, ""]:
    """Loss of the dead latents' reconstruction of the residual.

    Args:
        x: The encoder's input.
        norms: Decoder norms that activations are multiplied by to rank them; None for ones.
        residual: What the other latents do not reconstruct; a target, so it gets no gradient.
    """
    index = dead.nonzero().view(-1)
    n_dead, k_heuristic = index.numel(), x.shape[-1] // 2
    if n_dead == 0:
        return x.new_zeros(())
    residual = residual.detach()
    k_aux = min(k_heuristic, n_dead)
    preactivations = x @ parameters.W_enc.index_select(1, index) + parameters.b_enc.index_select(0, index)
    if style == "dictionary_learning":
        preactivations = preactivations.relu()
    if k_aux < n_dead:
        ranked = preactivations if norms is None else preactivations * norms[index]
        chosen = ranked.detach().topk(k_aux, dim=-1, sorted=False).indices
        keep = torch.zeros_like(preactivations, dtype=torch.bool).scatter_(-1, chosen, True)
        preactivations = torch.where(keep, preactivations, 0.0)
    reconstruction = preactivations @ parameters.W_dec.index_select(0, index)
    squared_error = (reconstruction - residual).pow(2).sum(-1).mean()
    if style == "sae_lens":
        return min(n_dead / k_heuristic, 1.0) * squared_error
    if style == "dictionary_learning":
        variance = (residual - residual.mean(0)).pow(2).sum(-1).mean()
        return (squared_error / variance).nan_to_num(0.0)
    assert_never(style)
