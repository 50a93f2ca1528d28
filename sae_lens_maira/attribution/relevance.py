"""Backward rules that turn gradients into relevance (RelP; arXiv 2508.21258, after layer-wise relevance propagation).

A gradient says what an infinitesimal change would do; relevance says what each input contributed. The rules change only
the backward pass, and cost no more than a gradient:

1. Norms: the factor by which a norm divides is a constant (LN rule).
2. Attention: the pattern is a constant, so relevance flows through values alone (AH rule).
3. Activation functions: ``f(x)`` counts as ``x`` times the constant ``f(x) / x`` (identity rule).
4. Products of two branches, as in gated MLPs: each branch gets one half (half rule).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sae_lens_maira.errors import AttributionError


@contextmanager
def relevance_rules(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Apply the rules to decoder layers in all backward passes of forward passes inside the ``with`` block.

    Args:
        layers: with the submodule names that transformers' decoders share: ``q_proj``, ``act_fn``, ``down_proj``, ...

    Raises:
        AttributionError: a layer has other names.
    """
    handles = []
    try:
        for layer in layers:
            found = [handle for name, module in layer.named_modules() if (handle := _add_rule(name, module))]
            handles += found
            if len(found) < len(("q_proj", "k_proj", "act_fn", "down_proj", "norm")):
                raise AttributionError(
                    f"The method relp knows no rules for layers of type {type(layer).__name__}; choose another one."
                )
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add_rule(name: str, module: nn.Module) -> Any:
    leaf = name.rpartition(".")[2]
    if leaf in ("q_proj", "k_proj"):
        return module.register_forward_hook(lambda _module, _args, output: output.detach())
    if leaf == "act_fn" or leaf.endswith("norm"):
        return module.register_forward_hook(_freeze_ratio)
    if leaf == "down_proj":
        return module.register_forward_pre_hook(lambda _module, args: (_half_gradient(args[0]),))
    return None


def _freeze_ratio(_module: nn.Module, args: Any, output: Any) -> Tensor:
    return _frozen_ratio(args[0], output)


def _frozen_ratio(value: Tensor, output: Tensor) -> Tensor:
    """``output``, with the gradient of ``value`` times a constant."""
    base = value.detach()
    ratio = torch.where(base == 0, torch.zeros_like(base), output.detach() / base)
    return output.detach() + ratio * (value - base)


def _half_gradient(value: Tensor) -> Tensor:
    return value.detach() + 0.5 * (value - value.detach())
