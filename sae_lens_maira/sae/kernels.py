"""Sparse encoder and nested decoder: two autograd functions, exact in forward and backward.

With `x` the centred input, `v` the active pre-activations, `R_p` the reconstruction of prefix p and weights `w_p`,

    loss   = sum_p w_p * mean_t |R_p[t] - x[t]|^2
    R_p[t] = b_dec + sum over active latents j < width_p of v[t, j] W_dec[j]

1. *One decode for all prefixes.* Prefix groups are contiguous, so one bag a (token, group) and a running sum over the
   groups give every `R_p`; each active latent is decoded once.
2. *One error for all gradients.* A latent of group g takes part in the prefixes p >= g, so its gradients need only
   `S_g = sum over p >= g of 2 w_p / n_tokens * (R_p - x)`, a running sum from the other end, made in place.
3. `dW_dec[j] = sum_t v[t, j] S_g(j)[t]` and `dW_enc[:, j] = sum_t dv[t, j] x[t]` are bags over the transposed pattern;
   `dv[t, j] = W_dec[j] . S_g(j)[t]` is a product sampled at the active pairs; `db_dec` is `sum_t S_0[t]`, less what the
   encoder's input takes.

Decoder norms (SAE-Lens's `rescale_acts_by_decoder_norm`) do not appear: an activation is multiplied by the norm for
the selection and divided by it before the decoder, so for a given selection the norms cancel in value and gradient.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae_lens_maira.sae.pattern import ActivePattern, sum_bags
from sae_lens_maira.sae.recycling import recycled_empty

TOKENS_A_BLOCK = 256
"""Tokens whose errors are processed together, so that the passes over them stay in the processor's cache."""


class _SelectedPreactivations(torch.autograd.Function):
    """`values[i] = (x[token_i] - b_dec) @ W_enc[:, latent_i] + b_enc[latent_i]`, the values being known already."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        x: Float[Tensor, "n_tokens d_in"],
        b_dec: Float[Tensor, " d_in"] | None,
        W_enc: Float[Tensor, "d_in d_sae"],
        b_enc: Float[Tensor, " d_sae"],
        centred: Float[Tensor, "n_tokens d_in"],
        values: Float[Tensor, " n_active"],
        pattern: ActivePattern,
    ) -> Float[Tensor, " n_active"]:
        del x, b_dec
        ctx.save_for_backward(centred, W_enc, b_enc)
        ctx.pattern = pattern
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_values: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        centred, W_enc, b_enc = ctx.saved_tensors
        pattern: ActivePattern = ctx.pattern
        needs_x, needs_b_dec, needs_W_enc, needs_b_enc = ctx.needs_input_grad[:4]
        grad_x = grad_b_dec = grad_W_enc = grad_b_enc = None
        if needs_b_enc or needs_b_dec:
            grad_b_enc = torch.zeros_like(b_enc).index_add_(0, pattern.latents, grad_values)
        if needs_W_enc:
            order = pattern.to_latent_order
            grad_W_enc = sum_bags(centred, pattern.tokens_by_latent, pattern.latent_offsets, grad_values[order]).T
        if needs_b_dec:
            assert grad_b_enc is not None
            grad_b_dec = -(W_enc @ grad_b_enc)
        if needs_x:
            rows = W_enc.T.contiguous()
            grad_x = sum_bags(rows, pattern.latents, pattern.token_offsets.contiguous(), grad_values)
        return grad_x, grad_b_dec, grad_W_enc, grad_b_enc, None, None, None


class _NestedReconstruction(torch.autograd.Function):
    """Weighted loss over all prefixes and the full reconstruction; the losses of the prefixes come for the log."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        x: Float[Tensor, "n_tokens d_in"],
        values: Float[Tensor, " n_active"],
        W_dec: Float[Tensor, "d_sae d_in"],
        b_dec: Float[Tensor, " d_in"],
        pattern: ActivePattern,
        weights: tuple[float, ...],
        keep_errors: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        n_tokens, d_in = x.shape
        n_prefixes = pattern.n_prefixes
        suffix_sums = recycled_empty((n_tokens, n_prefixes, d_in), x.dtype, x.device)
        kept = torch.empty_like(suffix_sums) if keep_errors else None
        reconstruction = torch.empty_like(x)
        losses = x.new_zeros(n_prefixes)
        per_block = TOKENS_A_BLOCK if x.device.type == "cpu" else max(n_tokens, 1)
        bounds = [*range(0, n_tokens, per_block), n_tokens]
        pair_bounds = pattern.token_offsets[bounds].tolist()
        for start, stop, first, last in zip(bounds, bounds[1:], pair_bounds, pair_bounds[1:], strict=False):
            offsets = pattern.bag_offsets[start * n_prefixes : stop * n_prefixes + 1] - first
            bags = sum_bags(W_dec, pattern.latents[first:last], offsets, values[first:last])
            block = slice(start, stop)
            _errors_and_suffix_sums(
                bags.view(stop - start, n_prefixes, d_in),
                x[block],
                b_dec,
                scales=[2 * weight / n_tokens for weight in weights],
                losses=losses,
                reconstruction=reconstruction[block],
                kept=None if kept is None else kept[block],
                out=suffix_sums[block],
            )
        losses /= n_tokens
        loss = losses @ losses.new_tensor(weights)
        ctx.save_for_backward(values, W_dec, suffix_sums)
        ctx.pattern = pattern
        ctx.mark_non_differentiable(losses, *(() if kept is None else (kept,)))
        ctx.set_materialize_grads(False)
        return loss, reconstruction, losses, kept

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_loss, grad_reconstruction = grads[:2]
        values, W_dec, suffix_sums = ctx.saved_tensors
        pattern: ActivePattern = ctx.pattern
        needs_x, needs_values, needs_W_dec, needs_b_dec = ctx.needs_input_grad[:4]
        scale = suffix_sums.new_zeros(()) if grad_loss is None else grad_loss
        grad_x = -scale * suffix_sums[:, 0] if needs_x else None
        if grad_reconstruction is not None:
            # The full reconstruction contains every group, so its gradient joins each group's sum.
            suffix_sums = scale * suffix_sums + grad_reconstruction[:, None]
            scale = torch.ones_like(scale)
        table = suffix_sums.reshape(-1, suffix_sums.shape[-1])
        grad_values = grad_W_dec = grad_b_dec = None
        if needs_values:
            grad_values = _sampled_products(table, W_dec, pattern) * scale
        if needs_W_dec:
            order = pattern.to_latent_order
            grad_W_dec = sum_bags(table, pattern.bags_by_latent, pattern.latent_offsets, values[order] * scale)
        if needs_b_dec:
            grad_b_dec = suffix_sums[:, 0].sum(0) * scale
        return grad_x, grad_values, grad_W_dec, grad_b_dec, None, None, None


def _errors_and_suffix_sums(
    bags: Float[Tensor, "n_block n_prefixes d_in"],
    x: Float[Tensor, "n_block d_in"],
    b_dec: Float[Tensor, " d_in"],
    scales: Sequence[float],
    losses: Float[Tensor, " n_prefixes"],
    reconstruction: Float[Tensor, "n_block d_in"],
    kept: Float[Tensor, "n_block n_prefixes d_in"] | None,
    out: Float[Tensor, "n_block n_prefixes d_in"],
) -> None:
    """Turn each group's share of the decoder into the prefix's error, then into `S_g`; the last four are filled."""
    errors, sums = bags.unbind(1), out.unbind(1)
    errors[0].add_(b_dec - x)
    for previous, error in pairwise(errors):
        error.add_(previous)
    torch.add(errors[-1], x, out=reconstruction)
    if kept is not None:
        kept.copy_(bags)
    losses += torch.stack([torch.linalg.vector_norm(error) for error in errors]).square()
    torch.mul(errors[-1], scales[-1], out=sums[-1])
    for index in range(len(errors) - 2, -1, -1):
        torch.add(sums[index + 1], errors[index], alpha=scales[index], out=sums[index])


def _sampled_products(
    table: Float[Tensor, "n_bags d_in"], W_dec: Float[Tensor, "d_sae d_in"], pattern: ActivePattern
) -> Float[Tensor, " n_active"]:
    """`out[i] = table[bag_i] . W_dec[latent_i]`."""
    size = (table.shape[0], W_dec.shape[0])
    zeros = table.new_zeros(pattern.n_active)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
        mask = torch.sparse_csr_tensor(pattern.bag_offsets, pattern.latents, zeros, size, check_invariants=False)
    return torch.sparse.sampled_addmm(mask, table, W_dec.T, beta=0.0).values()


def selected_preactivations(
    x: Float[Tensor, "n_tokens d_in"],
    b_dec: Float[Tensor, " d_in"] | None,
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    centred: Float[Tensor, "n_tokens d_in"],
    values: Float[Tensor, " n_active"],
    pattern: ActivePattern,
) -> Float[Tensor, " n_active"]:
    """Give the selected pre-activations their gradients; `centred` is `x - b_dec`, or `x` where `b_dec` is None."""
    values = values.to(centred.dtype)
    return _SelectedPreactivations.apply(x, b_dec, W_enc, b_enc, centred, values, pattern)  # pyright: ignore[reportReturnType]


def nested_reconstruction(
    x: Float[Tensor, "n_tokens d_in"],
    values: Float[Tensor, " n_active"],
    W_dec: Float[Tensor, "d_sae d_in"],
    b_dec: Float[Tensor, " d_in"],
    pattern: ActivePattern,
    weights: Sequence[float],
    keep_errors: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return `(loss, reconstruction, prefix_losses, errors)`.

    `loss` and `reconstruction` are differentiable. `prefix_losses` (each prefix's mean squared error, summed over d_in)
    and `errors` (`R_p - x`, `(n_tokens, n_prefixes, d_in)`, only with `keep_errors`) are for logs and residuals.
    """
    return _NestedReconstruction.apply(x, values, W_dec, b_dec, pattern, tuple(weights), keep_errors)  # pyright: ignore[reportReturnType]
