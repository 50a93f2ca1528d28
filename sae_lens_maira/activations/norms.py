"""Residual norms by kind of token: attention sinks have norms far above the median and ruin SAE training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from sae_lens_maira.data.study import TokenKind

if TYPE_CHECKING:
    from sae_lens_maira.hooked.model import HookedMaira2
    from sae_lens_maira.rows.dataset import StudyRows


@dataclass(frozen=True)
class KindNorms:
    """Norms of one kind of token.

    Args:
        n_tokens: how many were measured.
        median: of their norms.
        largest: of their norms.
        share_far: share of them with more than ``multiple`` times the median over all kinds.
    """

    n_tokens: int
    median: float
    largest: float
    share_far: float


@dataclass(frozen=True)
class ResidualNorms:
    """Norms at one hook point.

    Args:
        hook_name: where they were measured.
        median: over all tokens.
        multiple: what counts as far above the median.
        share_far: share of all tokens that are.
        mean_to_std: norm of the mean activation over the root mean square distance from it. Large values predict
            features that die early; mean-centring helps.
        by_kind: the same for each kind of token.
    """

    hook_name: str
    median: float
    multiple: float
    share_far: float
    mean_to_std: float
    by_kind: dict[str, KindNorms]

    def describe(self) -> str:
        """A small table."""
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


def summarise_norms(
    activations: Float[Tensor, "n_tokens d_in"],
    kinds: Integer[Tensor, " n_tokens"],
    hook_name: str,
    multiple: float,
) -> ResidualNorms:
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
    return ResidualNorms(
        hook_name, median.item(), multiple, is_far.float().mean().item(), (mean.norm() / spread).item(), by_kind
    )


@torch.no_grad()
def measure_norms(
    model: HookedMaira2,
    rows: StudyRows,
    hook_names: Sequence[str],
    *,
    multiple: float = 100.0,
    n_studies: int = 64,
    batch_size: int = 8,
) -> dict[str, ResidualNorms]:
    """Measure residual norms at hook points, on the first studies of a dataset of rows.

    Args:
        model: to run.
        rows: of its studies.
        hook_names: where to measure, all in one pass a batch.
        multiple: what counts as far above the median.
        n_studies: how many studies to run.
        batch_size: studies a forward.
    """
    sample = rows.dataset.select(range(min(n_studies, len(rows.dataset)))).with_format("torch")
    found: dict[str, list[Tensor]] = {name: [] for name in hook_names}
    kinds: list[Tensor] = []
    for start in range(0, len(sample), batch_size):
        batch = sample[start : start + batch_size]
        is_token = batch["kinds"] != TokenKind.PAD
        _, cache = model.run_with_cache(batch["tokens"], names_filter=list(hook_names), return_type=None)
        for name in hook_names:
            found[name].append(cache[name].cpu()[is_token])
        kinds.append(batch["kinds"][is_token])
    return {name: summarise_norms(torch.cat(found[name]), torch.cat(kinds), name, multiple) for name in hook_names}
