"""From a step's input to losses and activations of all prefixes: sparse or dense, with the same results.

The sparse pass computes the active latents only; its values and gradients come from ``kernels.py``. The dense pass is
the plain formula; it serves hooks, high densities, and data types that the kernels do not support.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_maira.sae.kernels import nested_reconstruction, selected_preactivations
from sae_lens_maira.sae.pattern import make_pattern
from sae_lens_maira.sae.selection import Encoder, Selection


@dataclass(frozen=True)
class Prefixes:
    """The prefixes of the dictionary that one step trains: cumulative widths, and the weight of each one's loss."""

    widths: list[int]
    weights: list[float]


@dataclass(frozen=True)
class Parameters:
    """The SAE's parameters as one step uses them."""

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: Float[Tensor, " d_in"]
    apply_b_dec_to_input: bool

    def encoder_input(self, x: Float[Tensor, "n_tokens d_in"]) -> Float[Tensor, "n_tokens d_in"]:
        return x - self.b_dec if self.apply_b_dec_to_input else x


@dataclass(frozen=True)
class Pass:
    """Result of the sparse or the dense pass."""

    loss: Float[Tensor, ""]
    reconstruction: Float[Tensor, "n_tokens d_in"]
    prefix_losses: Float[Tensor, " n_prefixes"]
    activations: Float[Tensor, "n_tokens d_sae"]
    """Sparse COO or dense, scaled as the top-k compares them."""
    hidden_pre: Float[Tensor, "n_tokens d_sae"]
    prefix_errors: Float[Tensor, "n_tokens n_prefixes d_in"] | None
    """``R_p - x`` of each prefix, detached; None unless they were asked for."""


def sparse_pass(
    x: Float[Tensor, "n_tokens d_in"],
    parameters: Parameters,
    norms: Float[Tensor, " d_sae"] | None,
    select: Callable[[Encoder], Selection],
    prefixes: Prefixes,
    keep_errors: bool,
) -> Pass:
    """Encode, select and decode the active latents alone.

    Args:
        norms: Decoder norms that activations are multiplied by before they are compared; None for ones.
        select: The top-k.
        keep_errors: Whether the errors of all prefixes are wanted.
    """
    d_sae = parameters.W_dec.shape[0]
    with torch.no_grad():
        centered = parameters.encoder_input(x)
        selection = select(Encoder(centered, parameters.W_enc.T, parameters.b_enc, norms))
        pattern, order = make_pattern(selection.tokens, selection.latents, x.shape[0], d_sae, prefixes.widths)
    # Autocast chose the precision of the encoder's product above; what follows is sparse and stays in fp32.
    with torch.autocast(x.device.type, enabled=False):
        b_dec = parameters.b_dec if parameters.apply_b_dec_to_input else None
        chosen = selection.preactivations[order]
        values = selected_preactivations(x, b_dec, parameters.W_enc, parameters.b_enc, centered, chosen, pattern)
        loss, reconstruction, prefix_losses, errors = nested_reconstruction(
            x, values, parameters.W_dec, parameters.b_dec, pattern, prefixes.weights, keep_errors
        )
        activations = pattern.as_sparse(values if norms is None else values * norms[pattern.latents])
    return Pass(loss, reconstruction, prefix_losses, activations, activations, errors)


def dense_pass(
    x: Float[Tensor, "n_tokens d_in"],
    parameters: Parameters,
    norms: Float[Tensor, " d_sae"] | None,
    activations: Float[Tensor, "n_tokens d_sae"],
    hidden_pre: Float[Tensor, "n_tokens d_sae"],
    prefixes: Prefixes,
    keep_errors: bool,
    hook_reconstruction: Callable[[Tensor], Tensor],
) -> Pass:
    """Decode encoded activations prefix by prefix.

    Args:
        norms: Decoder norms that the activations were multiplied by; None for ones.
        hook_reconstruction: The hook that the full reconstruction passes through.
        keep_errors: Whether the errors of all prefixes are wanted.
    """
    decoded = activations
    if norms is not None:
        decoded = activations * torch.where(norms > 0, 1 / norms, 0.0)
    reconstruction, start = parameters.b_dec, 0
    losses, errors = [], []
    for width in prefixes.widths:
        reconstruction = decoded[:, start:width] @ parameters.W_dec[start:width] + reconstruction
        if width == prefixes.widths[-1]:
            reconstruction = hook_reconstruction(reconstruction)
        error = reconstruction - x
        losses.append(error.pow(2).sum(-1).mean())
        if keep_errors:
            errors.append(error.detach())
        start = width
    loss = torch.stack([weight * loss for weight, loss in zip(prefixes.weights, losses, strict=True)]).sum()
    prefix_errors = torch.stack(errors, dim=1) if errors else None
    return Pass(loss, reconstruction, torch.stack(losses), activations, hidden_pre, prefix_errors)
