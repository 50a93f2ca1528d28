"""Sparse encoder and nested decoder: two autograd functions, exact in forward and backward.

With ``x`` the centered input, ``v`` the active pre-activations, ``R_p`` the reconstruction of prefix p and
weights ``w_p``,

    loss   = sum_p w_p * mean_t |R_p[t] - x[t]|^2
    R_p[t] = b_dec + sum over active latents j < width_p of v[t, j] W_dec[j]

1. *One decode for all prefixes.* Prefix groups are contiguous, so one bag per (token, group) and a running sum over the
   groups give every ``R_p``; each active latent is decoded once.
2. *One error for all gradients.* A latent of group g takes part in the prefixes p >= g, so its gradients need only
   ``S_g = sum over p >= g of 2 w_p / n_tokens * (R_p - x)``, a running sum from the last group on, made in place.
3. ``dW_dec[j] = sum_t v[t, j] S_g(j)[t]`` and ``dW_enc[:, j] = sum_t dv[t, j] x[t]`` are bags over the transposed
   pattern; ``dv[t, j] = W_dec[j] . S_g(j)[t]`` is a product sampled at the active pairs; ``db_dec`` is
   ``sum_t S_0[t]``, minus the part that comes through the encoder's input.

Decoder norms (SAE-Lens's ``rescale_acts_by_decoder_norm``) do not appear: an activation is multiplied by the norm for
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

from sae_lens_maira.sae.pattern import ActivePattern, column_blocks, sum_bags, sum_bags_by_columns


class _SelectedPreactivations(torch.autograd.Function):
    """``values[i] = (x[token_i] - b_dec) @ W_enc[:, latent_i] + b_enc[latent_i]``, from known values."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        x: Float[Tensor, "n_tokens d_in"],
        b_dec: Float[Tensor, " d_in"] | None,
        W_enc: Float[Tensor, "d_in d_sae"],
        b_enc: Float[Tensor, " d_sae"],
        centered: Float[Tensor, "n_tokens d_in"],
        values: Float[Tensor, " n_active"],
        pattern: ActivePattern,
    ) -> Float[Tensor, " n_active"]:
        del x, b_dec
        ctx.save_for_backward(centered, W_enc, b_enc)
        ctx.pattern = pattern
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_values: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        centered, W_enc, b_enc = ctx.saved_tensors
        pattern: ActivePattern = ctx.pattern
        needs_x, needs_b_dec, needs_W_enc, needs_b_enc = ctx.needs_input_grad[:4]
        grad_x = grad_b_dec = grad_W_enc = grad_b_enc = None
        if needs_b_enc or needs_b_dec:
            grad_b_enc = torch.zeros_like(b_enc).index_add_(0, pattern.latents, grad_values)
        if needs_W_enc:
            order = pattern.to_latent_order
            grad_W_enc = sum_bags_by_columns(
                _split(centered), pattern.tokens_by_latent, pattern.latent_offsets, grad_values[order]
            ).T
        if needs_b_dec:
            assert grad_b_enc is not None
            grad_b_dec = -(W_enc @ grad_b_enc)
        if needs_x:
            rows = W_enc.T.contiguous()
            grad_x = sum_bags(rows, pattern.latents, pattern.token_offsets.contiguous(), grad_values)
        return grad_x, grad_b_dec, grad_W_enc, grad_b_enc, None, None, None


class _NestedReconstruction(torch.autograd.Function):
    """Weighted loss over all prefixes and the full reconstruction, with each prefix's loss for the log."""

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
        kept = x.new_empty(n_tokens, n_prefixes, d_in) if keep_errors else None
        reconstruction = torch.empty_like(x)
        losses = x.new_zeros(n_prefixes)
        scales = [2 * weight / n_tokens for weight in weights]
        suffix_sums = []
        # Columns are independent until the end, so they are processed in blocks that fit the processor's cache.
        for block in column_blocks(d_in, x.device):
            bags = sum_bags(W_dec[:, block], pattern.latents, pattern.bag_offsets, values)
            bags = bags.view(n_tokens, n_prefixes, -1)
            kept_block = None if kept is None else kept[..., block]
            _to_suffix_sums(bags, x[:, block], b_dec[block], scales, losses, reconstruction[:, block], kept_block)
            suffix_sums.append(bags)
        losses /= n_tokens
        loss = losses @ losses.new_tensor(weights)
        ctx.save_for_backward(values, W_dec, *suffix_sums)
        ctx.pattern = pattern
        ctx.mark_non_differentiable(losses, *(() if kept is None else (kept,)))
        ctx.set_materialize_grads(False)
        return loss, reconstruction, losses, kept

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_loss, grad_reconstruction = grads[:2]
        values, W_dec, *suffix_sums = ctx.saved_tensors
        pattern: ActivePattern = ctx.pattern
        needs_x, needs_values, needs_W_dec, needs_b_dec = ctx.needs_input_grad[:4]
        blocks = column_blocks(W_dec.shape[1], W_dec.device)
        scale = W_dec.new_zeros(()) if grad_loss is None else grad_loss
        grad_x = -scale * torch.cat([block[:, 0] for block in suffix_sums], dim=1) if needs_x else None
        if grad_reconstruction is not None:
            # The full reconstruction contains every group, so its gradient joins each group's sum.
            pairs = zip(suffix_sums, blocks, strict=True)
            suffix_sums = [scale * sums + grad_reconstruction[:, None, block] for sums, block in pairs]
            scale = torch.ones_like(scale)
        tables = [sums.reshape(-1, sums.shape[-1]) for sums in suffix_sums]
        grad_values = grad_W_dec = grad_b_dec = None
        if needs_values:
            grad_values = _sampled_products(tables, _split(W_dec), pattern) * scale
        if needs_W_dec:
            weights = values[pattern.to_latent_order] * scale
            grad_W_dec = sum_bags_by_columns(tables, pattern.bags_by_latent, pattern.latent_offsets, weights)
        if needs_b_dec:
            grad_b_dec = torch.cat([sums[:, 0].sum(0) for sums in suffix_sums]) * scale
        return grad_x, grad_values, grad_W_dec, grad_b_dec, None, None, None


def _to_suffix_sums(
    bags: Float[Tensor, "n_tokens n_prefixes n_block"],
    x: Float[Tensor, "n_tokens n_block"],
    b_dec: Float[Tensor, " n_block"],
    scales: Sequence[float],
    losses: Float[Tensor, " n_prefixes"],
    reconstruction: Float[Tensor, "n_tokens n_block"],
    kept: Float[Tensor, "n_tokens n_prefixes n_block"] | None,
) -> None:
    """Turn each group's share of the decoder, in place, into the prefix's error and then into ``S_g``."""
    groups = bags.unbind(1)
    groups[0].add_(b_dec - x)
    for previous, group in pairwise(groups):
        group.add_(previous)
    torch.add(groups[-1], x, out=reconstruction)
    if kept is not None:
        kept.copy_(bags)
    losses += torch.stack([torch.linalg.vector_norm(group) for group in groups]).square()
    groups[-1].mul_(scales[-1])
    for index in range(len(groups) - 2, -1, -1):
        torch.add(groups[index + 1], groups[index], alpha=scales[index], out=groups[index])


def _sampled_products(
    tables: Sequence[Float[Tensor, "n_bags _"]],
    decoders: Sequence[Float[Tensor, "d_sae _"]],
    pattern: ActivePattern,
) -> Float[Tensor, " n_active"]:
    """``out[i] = table[bag_i] . W_dec[latent_i]``, both given in blocks of columns."""
    size = (tables[0].shape[0], decoders[0].shape[0])
    zeros = tables[0].new_zeros(pattern.n_active)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
        found = torch.sparse_csr_tensor(pattern.bag_offsets, pattern.latents, zeros, size, check_invariants=False)
    for table, decoder in zip(tables, decoders, strict=True):
        found = torch.sparse.sampled_addmm(found, table, decoder.T)
    return found.values()


def _split(table: Float[Tensor, "n d"]) -> list[Float[Tensor, "n _"]]:
    return [table[:, block] for block in column_blocks(table.shape[1], table.device)]


def selected_preactivations(
    x: Float[Tensor, "n_tokens d_in"],
    b_dec: Float[Tensor, " d_in"] | None,
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    centered: Float[Tensor, "n_tokens d_in"],
    values: Float[Tensor, " n_active"],
    pattern: ActivePattern,
) -> Float[Tensor, " n_active"]:
    """Attach gradients to the selected pre-activations.

    Args:
        b_dec: The decoder's bias if the encoder's input is centered by it, else None.
        centered: ``x - b_dec``, or ``x`` where ``b_dec`` is None.
    """
    values = values.to(centered.dtype)
    return _SelectedPreactivations.apply(x, b_dec, W_enc, b_enc, centered, values, pattern)  # pyright: ignore[reportReturnType]


def nested_reconstruction(
    x: Float[Tensor, "n_tokens d_in"],
    values: Float[Tensor, " n_active"],
    W_dec: Float[Tensor, "d_sae d_in"],
    b_dec: Float[Tensor, " d_in"],
    pattern: ActivePattern,
    weights: Sequence[float],
    keep_errors: bool = False,
) -> tuple[
    Float[Tensor, ""],
    Float[Tensor, "n_tokens d_in"],
    Float[Tensor, " n_prefixes"],
    Float[Tensor, "n_tokens n_prefixes d_in"] | None,
]:
    """Return ``(loss, reconstruction, prefix_losses, errors)``.

    ``loss`` and ``reconstruction`` are differentiable. ``prefix_losses`` (each prefix's mean squared error, summed
    over d_in) and ``errors`` (``R_p - x``, only with ``keep_errors``) are for logs and residuals.
    """
    return _NestedReconstruction.apply(x, values, W_dec, b_dec, pattern, tuple(weights), keep_errors)  # pyright: ignore[reportReturnType]
