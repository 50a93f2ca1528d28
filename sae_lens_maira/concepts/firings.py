"""Sparse features at every token: an SAE's latents, directions under a top-k, and the words of the text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_maira.concepts.feature_sets import Firings
from sae_lens_maira.data.study import IMAGE_KINDS
from sae_lens_maira.features.recording import Recording

_DENSE_ENTRIES = 1 << 23


def latents(sae: Any, recording: Recording) -> Iterator[Firings]:
    """An SAE's latents.

    Args:
        sae: as :func:`~sae_lens_maira.features.firings.folded_copy` returns it.
        recording: activations at its hook point.
    """
    for first, chunk in _chunks(recording, int(sae.cfg.d_sae)):
        with torch.no_grad():
            activations = sae.encode(chunk.to(sae.device, sae.dtype)).float().cpu()
        yield _firings(first, activations)


def top_k(
    recording: Recording,
    encoder: Float[Tensor, "d_in n_features"],
    center: Float[Tensor, " d_in"],
    k: int,
    bias: Float[Tensor, " n_features"] | None = None,
) -> Iterator[Firings]:
    """The k largest positive products with an encoder's columns at each token, as in a TopK SAE (arXiv 2406.04093).

    Args:
        recording: the activations.
        encoder: one column per feature.
        center: is subtracted from the activations first.
        k: features per token.
        bias: is added to the products.
    """
    n_features = encoder.shape[1]
    for first, chunk in _chunks(recording, n_features):
        with torch.no_grad():
            activations = keep_top((chunk - center) @ encoder + (0 if bias is None else bias), k)
        yield _firings(first, activations)


def keep_top(products: Float[Tensor, "n_tokens n_features"], k: int) -> Float[Tensor, "n_tokens n_features"]:
    """The k largest positive values of each row; the others are 0."""
    found = products.topk(min(k, products.shape[1]), dim=1)
    return torch.zeros_like(products).scatter(1, found.indices, found.values.relu())


def words(recording: Recording) -> Iterator[Firings]:
    """Which token of the vocabulary stands at each token of the text; image tokens have none."""
    is_text = ~np.isin(recording.kinds, IMAGE_KINDS)
    for study in range(recording.n_studies):
        own = recording.tokens(study)
        tokens = own.start + np.flatnonzero(is_text[own])
        yield Firings(own.stop, tokens, recording.token_ids[tokens], np.ones(len(tokens), dtype=np.float32))


class Counted:
    """Firings that are counted while they are read.

    Args:
        firings: the firings.
    """

    def __init__(self, firings: Iterable[Firings]) -> None:
        self._firings = firings
        self.n_entries = self.n_tokens = 0

    def __iter__(self) -> Iterator[Firings]:
        for part in self._firings:
            self.n_entries += len(part.tokens)
            self.n_tokens = part.stop
            yield part

    @property
    def per_token(self) -> float:
        """Mean number of features that fire at a token."""
        return self.n_entries / max(self.n_tokens, 1)


def _chunks(recording: Recording, n_features: int) -> Iterator[tuple[int, Tensor]]:
    first = 0
    for chunk in recording.chunks(max(_DENSE_ENTRIES // n_features, 1)):
        yield first, chunk
        first += len(chunk)


def _firings(first: int, activations: Float[Tensor, "n_tokens n_features"]) -> Firings:
    tokens, features = (index.numpy() for index in torch.nonzero(activations > 0, as_tuple=True))
    values = activations.numpy()[tokens, features]
    return Firings(first + len(activations), tokens + first, features, values)
