"""The pattern of active latents of one batch, in the two orders that the kernels read.

A batch top-k leaves about ``k * n_tokens`` active (token, latent) pairs. The forward pass reads them token by token,
the weight gradients latent by latent. Both orders are kept as index lists with offsets, which is what
``torch.nn.functional.embedding_bag`` takes:

- token order, cut into one *bag* per (token, prefix group): groups are contiguous ranges of the dictionary, so a list
  sorted by (token, latent) is sorted by (token, group) as well;
- latent order, cut into one bag per latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class ActivePattern:
    """A batch's ``n_active`` (token, latent) pairs in token order, and the permutation to latent order."""

    n_tokens: int
    d_sae: int
    prefix_widths: tuple[int, ...]
    tokens: Int[Tensor, " n_active"]
    """Token of each pair, ascending."""
    latents: Int[Tensor, " n_active"]
    """Latent of each pair, ascending within a token."""
    bag_offsets: Int[Tensor, " n_bags_plus_1"]
    """Start of each (token, group) bag in token order; ``n_tokens * n_prefixes + 1`` entries."""
    to_latent_order: Int[Tensor, " n_active"]
    """``values[to_latent_order]`` puts per-pair values into latent order."""
    tokens_by_latent: Int[Tensor, " n_active"]
    """Token of each pair, in latent order."""
    bags_by_latent: Int[Tensor, " n_active"]
    """Row of each pair in a ``(n_tokens * n_prefixes, d_in)`` matrix, in latent order."""
    latent_offsets: Int[Tensor, " d_sae_plus_1"]
    """Start of each latent's pairs in latent order."""

    @property
    def n_prefixes(self) -> int:
        return len(self.prefix_widths)

    @property
    def n_active(self) -> int:
        return self.latents.numel()

    @property
    def token_offsets(self) -> Int[Tensor, " n_tokens_plus_1"]:
        return self.bag_offsets[:: self.n_prefixes]

    def as_sparse(self, values: Float[Tensor, " n_active"]) -> Tensor:
        """The activations as a coalesced ``(n_tokens, d_sae)`` sparse COO tensor; gradients flow to ``values``."""
        indices = torch.stack([self.tokens, self.latents])
        size = (self.n_tokens, self.d_sae)
        return torch.sparse_coo_tensor(indices, values, size, is_coalesced=True, check_invariants=False)


def make_pattern(
    tokens: Int[Tensor, " n_active"],
    latents: Int[Tensor, " n_active"],
    n_tokens: int,
    d_sae: int,
    prefix_widths: Sequence[int],
) -> tuple[ActivePattern, Int[Tensor, " n_active"]]:
    """Index pairs given in latent order; also returns the permutation from latent order to token order."""
    device = latents.device
    # int32 keys halve the memory traffic, and PyTorch's radix sort is faster on them.
    to_token_order = torch.argsort(tokens.int(), stable=True)
    to_latent_order = torch.empty_like(to_token_order)
    to_latent_order[to_token_order] = torch.arange(to_token_order.numel(), device=device)

    widths = torch.tensor(prefix_widths, device=device)
    groups = torch.bucketize(latents, widths, right=True)
    bags = tokens * len(prefix_widths) + groups
    pattern = ActivePattern(
        n_tokens=n_tokens,
        d_sae=d_sae,
        prefix_widths=tuple(prefix_widths),
        tokens=tokens[to_token_order],
        latents=latents[to_token_order],
        bag_offsets=_offsets(bags, n_tokens * len(prefix_widths)),
        to_latent_order=to_latent_order,
        tokens_by_latent=tokens,
        bags_by_latent=bags,
        latent_offsets=_offsets(latents, d_sae),
    )
    return pattern, to_token_order


def _offsets(keys: Int[Tensor, " n"], n_bags: int) -> Int[Tensor, " n_bags_plus_1"]:
    offsets = torch.zeros(n_bags + 1, dtype=torch.long, device=keys.device)
    torch.cumsum(torch.bincount(keys, minlength=n_bags), dim=0, out=offsets[1:])
    return offsets


COLUMNS_PER_BLOCK = 128
"""Columns that a CPU sums at a time: 128 columns of 2,048 fp32 rows are 1 MiB and stay in a core's L2 cache."""


def column_blocks(n_columns: int, device: torch.device) -> list[slice]:
    """Blocks of columns for a CPU; on other devices, one block of all columns."""
    width = COLUMNS_PER_BLOCK if device.type == "cpu" else max(n_columns, 1)
    return [slice(start, start + width) for start in range(0, n_columns, width)]


def sum_bags_by_columns(
    tables: Sequence[Float[Tensor, "n_rows _"]],
    rows: Int[Tensor, " n_active"],
    offsets: Int[Tensor, " n_bags_plus_1"],
    weights: Float[Tensor, " n_active"],
) -> Float[Tensor, "n_bags d"]:
    """``sum_bags`` of a table in blocks of columns: several times faster if the rows are in random order."""
    if len(tables) == 1:
        return sum_bags(tables[0], rows, offsets, weights)
    size = (offsets.numel() - 1, sum(table.shape[1] for table in tables))
    out = torch.empty(size, dtype=tables[0].dtype, device=tables[0].device)
    start = 0
    for table in tables:
        stop = start + table.shape[1]
        out[:, start:stop] = sum_bags(table, rows, offsets, weights)
        start = stop
    return out


def sum_bags(
    table: Float[Tensor, "n_rows d"],
    rows: Int[Tensor, " n_active"],
    offsets: Int[Tensor, " n_bags_plus_1"],
    weights: Float[Tensor, " n_active"],
) -> Float[Tensor, "n_bags d"]:
    """``out[b] = sum of weights[i] * table[rows[i]]`` over all i in bag b; empty bags are zero."""
    return F.embedding_bag(rows, table, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)
