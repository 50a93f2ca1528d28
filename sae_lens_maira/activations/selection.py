"""Which tokens are trained on: one rule for activations from the model and from a cache."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from sae_lens_maira.activations.block import Block
from sae_lens_maira.activations.stream import until_study
from sae_lens_maira.data.study import TokenKind

N_MEASURED_STUDIES = 64
"""Studies whose norms decide which activations are far above the median."""


@dataclass(frozen=True)
class TokenSelection:
    """Conditions that a token must meet to be selected.

    Args:
        kinds: kinds of tokens; None for all.
        n_studies: select only from this many studies at the start of the source; None for all.
        context_size: select only from this many tokens at the start of each row; None for all.
        study_token: include the study token, which is the frontal image's last token.
        norm_limits: leave out a token whose norm at any of these hook points is larger than its limit, as found by
            :func:`with_norm_limits`.
    """

    kinds: tuple[TokenKind, ...] | None = None
    n_studies: int | None = None
    context_size: int | None = None
    study_token: bool = True
    norm_limits: Mapping[str, float] = field(default_factory=dict)

    def of(self, block: Block) -> Bool[Tensor, " n_tokens"]:
        """Mask of a block's selected tokens."""
        selected = torch.ones(block.n_tokens, dtype=torch.bool, device=block.position.device)
        if self.kinds is not None:
            kinds = torch.tensor([int(kind) for kind in self.kinds], dtype=torch.uint8, device=block.kind.device)
            selected &= torch.isin(block.kind, kinds)
        if self.n_studies is not None:
            selected &= block.study_index < self.n_studies
        if self.context_size is not None:
            selected &= block.position < self.context_size
        if not self.study_token:
            selected &= block.position > 0
        for name, limit in self.norm_limits.items():
            selected &= block.norms[name] <= limit
        return selected


def measured_studies(selection: TokenSelection) -> TokenSelection:
    """The same selection, limited to the first studies: those whose norms are measured."""
    n_studies = selection.n_studies
    n_measured = N_MEASURED_STUDIES if n_studies is None else min(n_studies, N_MEASURED_STUDIES)
    return replace(selection, n_studies=n_measured)


def with_norm_limits(
    selection: TokenSelection, stream: Iterable[Block], hook_names: Sequence[str], max_norm_multiple: float
) -> TokenSelection:
    """Leave out activations whose norm is far above the median: attention sinks.

    The median is that of the selected tokens of the first :data:`N_MEASURED_STUDIES` studies. It is the same for
    activations from the model and from a cache, apart from the rounding of the cache's dtype.

    Args:
        selection: the other conditions.
        stream: at least the first studies.
        hook_names: hook points; the norm is limited at each of them.
        max_norm_multiple: the limit, as a multiple of the median.
    """
    few = measured_studies(selection)
    assert few.n_studies is not None
    norms: dict[str, list[Tensor]] = {name: [] for name in hook_names}
    for block in until_study(stream, few.n_studies):
        selected = few.of(block)
        for name in hook_names:
            norms[name].append(block.norms[name][selected])
    limits: dict[str, float] = {}
    for name, parts in norms.items():
        values = torch.cat(parts).numpy() if parts else np.empty(0, dtype=np.float32)
        limits[name] = max_norm_multiple * float(np.median(values)) if len(values) else float("inf")
    return replace(selection, norm_limits=limits)
