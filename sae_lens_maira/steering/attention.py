"""Attention over keys that all rows share, and keys of their own: one prefill serves every row of a batch.

A prompt's keys and values are kept once, with a batch dimension of 1, however many rows continue it. Row b attends to
the shared keys and to its own; both parts of its scores go through one softmax, so the result is that of ordinary
attention. The products with the shared part are one matrix product for all rows (Juravsky et al. 2024, "Hydragen",
arXiv 2402.05099). MAIRA-2 has 0.5 MiB of keys and values per token, so copying a prompt of 1,550 tokens would cost
0.8 GB per row.

transformers lets attention functions be registered by name, and passes unknown keyword arguments on to them. That is
how :func:`shared_prefix_attention` gets the shared part.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "sae_lens_maira_shared_prefix"
_GROWTH = 64
_SWITCH = threading.RLock()
"""The attention function is chosen in the model's configuration, which all threads share."""


class KeysValues(NamedTuple):
    """Keys and values of one layer."""

    keys: Float[Tensor, "rows heads positions d_head"]
    values: Float[Tensor, "rows heads positions d_head"]


class SharedPrefixCache:
    """Keys and values of every layer: a part that all rows share, which is never copied, and a part of each row's own.

    It has the method of transformers' caches that decoder layers call.

    Args:
        shared: of each layer, with one row; the number of positions may differ between layers.
        n_rows: number of rows.
    """

    def __init__(self, shared: Sequence[KeysValues], n_rows: int) -> None:
        self.shared = list(shared)
        self.n_rows = n_rows
        self._own: list[KeysValues | None] = [None] * len(self.shared)
        self._lengths = [0] * len(self.shared)

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append to each row's own part of a layer.

        Returns:
            the whole own part, (rows, heads, positions, d_head).
        """
        start = self._lengths[layer_idx]
        end = start + keys.shape[2]
        own = self._own[layer_idx]
        if torch.is_grad_enabled():
            # The backward pass needs the values as they were, so that nothing may be written into them later.
            if own is not None:
                keys = torch.cat([own.keys[:, :, :start], keys], dim=2)
                values = torch.cat([own.values[:, :, :start], values], dim=2)
            self._own[layer_idx], self._lengths[layer_idx] = KeysValues(keys, values), end
            return keys, values
        if own is None or end > own.keys.shape[2]:
            own = self._own[layer_idx] = self._grown(own, start, end, keys)
        own.keys[:, :, start:end] = keys
        own.values[:, :, start:end] = values
        self._lengths[layer_idx] = end
        return own.keys[:, :, :end], own.values[:, :, :end]

    def select(self, rows: Int[Tensor, " _"]) -> None:
        """Keep some rows only, in their order, repeated if they are named repeatedly."""
        self.n_rows = len(rows)
        for layer, own in enumerate(self._own):
            if own is not None:
                on = rows.to(own.keys.device)
                end = self._lengths[layer]
                self._own[layer] = KeysValues(own.keys[on, :, :end], own.values[on, :, :end])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of positions before the next token, as transformers' caches say it."""
        return self.shared[layer_idx].keys.shape[2] + self._lengths[layer_idx]

    @staticmethod
    def _grown(own: KeysValues | None, start: int, end: int, like: Tensor) -> KeysValues:
        shape = (like.shape[0], like.shape[1], end + _GROWTH, like.shape[3])
        grown = KeysValues(like.new_empty(shape), like.new_empty(shape))
        if own is not None:
            grown.keys[:, :, :start] = own.keys[:, :, :start]
            grown.values[:, :, :start] = own.values[:, :, :start]
        return grown


def shared_prefix_attention(
    module: Any,
    query: Float[Tensor, "rows heads queries d_head"],
    key: Float[Tensor, "rows kv_heads own d_head"],
    value: Float[Tensor, "rows kv_heads own d_head"],
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    steering_cache: SharedPrefixCache,
    **_kwargs: Any,
) -> tuple[Float[Tensor, "rows queries heads d_head"], None]:
    """Causal attention of each row's last positions; called by transformers' attention modules.

    Args:
        module: the attention module; its ``layer_idx`` chooses the shared part.
        query: of the last positions of each row.
        key, value: each row's own part, from :meth:`SharedPrefixCache.update`.
        attention_mask: ignored, as prompts are never padded here.
        scaling: factor of the scores.
        dropout: ignored, as the model is in eval mode.
        steering_cache: holds the shared part.
    """
    del attention_mask, dropout
    shared = steering_cache.shared[module.layer_idx]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.shape[2] == 1:
        return _one_query(query, key, value, shared, scale), None
    n_rows, n_heads, n_queries, _ = query.shape
    n_shared = shared.keys.shape[2]
    if n_shared:
        key = torch.cat([shared.keys.expand(n_rows, -1, -1, -1), key], dim=2)
        value = torch.cat([shared.values.expand(n_rows, -1, -1, -1), value], dim=2)
    groups = n_heads // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    whole = key.shape[2] == n_queries
    mask = None
    if not whole:
        # A query at place t of the last ones sees all before them, and itself.
        mask = torch.ones(n_queries, key.shape[2], dtype=torch.bool, device=query.device)
        mask = mask.tril(key.shape[2] - n_queries)
    out = nn.functional.scaled_dot_product_attention(query, key, value, mask, is_causal=whole, scale=scale)
    return out.transpose(1, 2).contiguous(), None


def _one_query(query: Tensor, key: Tensor, value: Tensor, shared: KeysValues, scale: float) -> Tensor:
    """Attention of one new position per row, without copying the shared part."""
    n_rows, n_heads, _, d_head = query.shape
    n_kv, n_shared = key.shape[1], shared.keys.shape[2]
    n_groups = n_heads // n_kv
    # Query heads that read the same keys become further queries of that head.
    own = query.reshape(n_rows, n_kv, n_groups, d_head)
    folded = own.transpose(0, 1).reshape(1, n_kv, n_rows * n_groups, d_head)
    to_shared = (folded @ shared.keys.transpose(2, 3)).reshape(n_kv, n_rows, n_groups, n_shared).transpose(0, 1)
    scores = torch.cat([to_shared, own @ key.transpose(2, 3)], dim=-1) * scale
    weights = scores.float().softmax(dim=-1).to(query.dtype)
    of_shared, of_own = weights[..., :n_shared], weights[..., n_shared:]
    from_shared = of_shared.transpose(0, 1).reshape(1, n_kv, n_rows * n_groups, n_shared) @ shared.values
    out = from_shared.reshape(n_kv, n_rows, n_groups, d_head).transpose(0, 1) + of_own @ value
    return out.reshape(n_rows, 1, n_heads, d_head)


@contextmanager
def shared_prefix(config: Any) -> Iterator[None]:
    """Let a language model's attention modules use :func:`shared_prefix_attention` inside the block.

    Args:
        config: the language model's configuration.
    """
    with _SWITCH:
        before = config._attn_implementation
        config._attn_implementation = NAME
        try:
            yield
        finally:
            config._attn_implementation = before


AttentionInterface.register(NAME, shared_prefix_attention)
