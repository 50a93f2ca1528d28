"""Activation norms by kind of token. Attention sinks have norms far above the median, and they ruin SAE training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from sae_lens_maira.activations.block import Block
from sae_lens_maira.activations.selection import TokenSelection
from sae_lens_maira.data.study import TokenKind


@dataclass(frozen=True)
class KindNorms:
    """Norms of one kind of token.

    Args:
        n_tokens: number of tokens that were measured.
        median: median norm.
        largest: largest norm.
        share_far: share of the tokens whose norm is more than ``multiple`` times the median over all kinds.
    """

    n_tokens: int
    median: float
    largest: float
    share_far: float


@dataclass(frozen=True)
class ActivationNorms:
    """Norms at one hook point.

    Args:
        hook_name: the hook point.
        median: median norm of all tokens.
        multiple: a norm is far above the median if it is more than this many times the median.
        share_far: share of all tokens whose norm is far above the median.
        mean_to_std: norm of the mean activation over the root mean square distance from it. Large values predict
            features that die early; mean-centering helps.
        by_kind: norms of each kind of token.
    """

    hook_name: str
    median: float
    multiple: float
    share_far: float
    mean_to_std: float
    by_kind: dict[str, KindNorms]

    def describe(self) -> str:
        """A small table, as text."""
        lines = [
            f"{self.hook_name}: median norm {self.median:.3g}, {self.share_far:.2%} of tokens over {self.multiple:g} "
            f"times that, |mean| / |std| {self.mean_to_std:.2f}"
        ]
        lines += [
            f"  {kind:14} {norms.n_tokens:7} tokens, median {norms.median:.3g}, largest {norms.largest:.3g}, "
            f"far {norms.share_far:.2%}"
            for kind, norms in self.by_kind.items()
        ]
        return "\n".join(lines)


def summarize_norms(
    activations: Float[Tensor, "n_tokens d_in"],
    kinds: Integer[Tensor, " n_tokens"],
    hook_name: str,
    multiple: float,
) -> ActivationNorms:
    """Norms of activations, by the kinds of their tokens."""
    norms = activations.float().norm(dim=-1)
    median = norms.median()
    is_far = norms > multiple * median
    mean = activations.float().mean(dim=0)
    spread = (activations.float() - mean).square().sum(dim=-1).mean().sqrt()
    by_kind: dict[str, KindNorms] = {}
    for kind in TokenKind:
        of_kind = kinds == kind
        if of_kind.any():
            own = norms[of_kind]
            by_kind[kind.name.lower()] = KindNorms(
                int(of_kind.sum()), own.median().item(), own.max().item(), is_far[of_kind].float().mean().item()
            )
    return ActivationNorms(
        hook_name, median.item(), multiple, is_far.float().mean().item(), (mean.norm() / spread).item(), by_kind
    )


def measure_norms(
    stream: Iterable[Block], *, multiple: float = 100.0, selection: TokenSelection | None = None
) -> dict[str, ActivationNorms]:
    """Measure norms at every hook point of a short stream; all of its activations are held in memory.

    Args:
        stream: a few studies' activations.
        multiple: a norm is far above the median if it is more than this many times the median.
        selection: which tokens are measured; all if None.

    Returns:
        norms by hook point; empty if there are no tokens.
    """
    selection = selection or TokenSelection()
    activations: dict[str, list[Tensor]] = {}
    kinds: list[Tensor] = []
    for block in stream:
        selected = selection.of(block)
        for name, values in block.activations.items():
            activations.setdefault(name, []).append(values[selected])
        kinds.append(block.kind[selected])
    if not sum(map(len, kinds)):
        return {}
    return {
        name: summarize_norms(torch.cat(parts), torch.cat(kinds), name, multiple) for name, parts in activations.items()
    }
