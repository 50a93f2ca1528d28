"""What is read from a cache for each dictionary: each study's strongest activations, and how well it reconstructs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_maira.activations.block import Block
from sae_lens_maira.data.study import Label

Encode = Callable[[Float[Tensor, "n_tokens d_in"]], Float[Tensor, "n_tokens d_sae"]]
_CHUNK = 8192


@torch.no_grad()
def study_maxima(
    encode: Encode,
    blocks: Iterable[Block],
    hook_name: str,
    kinds: Sequence[int],
    studies: Int[np.ndarray, " n_studies"],
) -> Float[np.ndarray, "n_studies d_sae"]:
    """Each study's strongest activation of each latent on tokens of some kinds; 0 for a study without such tokens.

    Args:
        encode: activations of tokens, such as an SAE's ``encode``.
        blocks: of a cache, in order.
        hook_name: the hook point to read.
        kinds: values of :class:`~sae_lens_maira.data.study.TokenKind`.
        studies: the wanted studies, by index in the source, ascending.
    """
    found: Tensor | None = None
    wanted = torch.tensor(list(kinds), dtype=torch.uint8)
    index = torch.from_numpy(studies)
    for block in blocks:
        mask = torch.isin(block.kind, wanted) & torch.isin(block.study_index, index)
        for rows in torch.nonzero(mask)[:, 0].split(_CHUNK):
            values = encode(block.activations[hook_name][rows].float())
            place = torch.searchsorted(index, block.study_index[rows].long())
            if found is None:
                found = torch.full((len(studies), values.shape[1]), -torch.inf)
            found.scatter_reduce_(0, place[:, None].expand_as(values), values, "amax")
    assert found is not None, "the cache holds none of the studies"
    return found.where(found.isfinite(), torch.zeros(())).numpy()


@torch.no_grad()
def core_scores(sae: Any, tokens: Float[Tensor, "n_tokens d_in"]) -> dict[str, float]:
    """Explained variance, L0, and how often latents fire, on given activations.

    Explained variance is 1 - ``sum |x - x_hat|^2 / sum |x - mean(x)|^2``. A latent is dead if it fires on none of the
    tokens, and dense if it fires on more than a tenth of them.
    """
    residual = total = 0.0
    mean = tokens.mean(dim=0)
    counts = torch.zeros(int(sae.cfg.d_sae), dtype=torch.float64)
    for piece in tokens.split(_CHUNK):
        latents = sae.encode(piece)
        residual += float((piece - sae.decode(latents)).pow(2).sum(dtype=torch.float64))
        total += float((piece - mean).pow(2).sum(dtype=torch.float64))
        counts += (latents > 0).sum(dim=0)
    density = counts / len(tokens)
    return {
        "explained_variance": 1 - residual / total,
        "l0": float(density.sum()),
        "dead_share": float((density == 0).double().mean()),
        "dense_share": float((density > 0.1).double().mean()),
    }


@torch.no_grad()
def density(sae: Any, tokens: Float[Tensor, "n_tokens d_in"]) -> Float[np.ndarray, " d_sae"]:
    """Share of tokens on which each latent fires."""
    counts = torch.zeros(int(sae.cfg.d_sae))
    for piece in tokens.split(_CHUNK):
        counts += (sae.encode(piece) > 0).sum(dim=0)
    return (counts / len(tokens)).numpy()


def held_out_tokens(
    blocks: Iterable[Block], hook_name: str, first: int, n_tokens: int, max_norm_multiple: float | None
) -> Float[Tensor, "n_tokens d_in"]:
    """Evenly spaced tokens of the studies from ``first`` on, without those whose norm is far above the median."""
    parts = [block.activations[hook_name][block.study_index >= first].float() for block in blocks]
    tokens = torch.cat([part for part in parts if len(part)])
    norms = tokens.norm(dim=1)
    if max_norm_multiple is not None:
        tokens = tokens[norms <= max_norm_multiple * norms.median()]
    return tokens[:: max(len(tokens) // n_tokens, 1)][:n_tokens]


def truth_of(
    labels: Iterable[dict[str, Label]] | Iterator[Any], names: Sequence[str]
) -> Bool[np.ndarray, "n_studies n_names"]:
    """Which studies show each concept; an uncertain one counts."""
    return np.array([[known[name].positive for name in names] for known in labels], dtype=bool)
