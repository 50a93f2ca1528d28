"""Directions of the controls: random ones, coordinates, principal components, and SAEs with a frozen random decoder."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lens_maira.concepts.firings import keep_top
from sae_lens_maira.features.recording import Recording

_CHUNK_TOKENS = 8192
_BATCH = 1024


class Moments(NamedTuple):
    """Mean and covariance of activations."""

    mean: Float[Tensor, " d_in"]
    covariance: Float[Tensor, "d_in d_in"]


def moments(recording: Recording, studies: Bool[np.ndarray, " n_studies"]) -> Moments:
    """Mean and covariance over the tokens of some studies."""
    total, products, n_tokens = None, None, 0
    for chunk in recording.only(studies).chunks(_CHUNK_TOKENS):
        x = chunk.double()
        total = x.sum(0) if total is None else total + x.sum(0)
        products = x.T @ x if products is None else products + x.T @ x
        n_tokens += len(x)
    assert total is not None
    assert products is not None
    mean = total / n_tokens
    return Moments(mean.float(), (products / n_tokens - mean[:, None] * mean).float())


def random_directions(d_in: int, n_directions: int, seed: int) -> Float[Tensor, "d_in n_directions"]:
    """Directions that are uniform on the sphere, one per column."""
    drawn = torch.randn(d_in, n_directions, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.norm(dim=0)


def both_signs(directions: Float[Tensor, "d_in n"]) -> Float[Tensor, "d_in n_both"]:
    """Directions, then their opposites: pooled by maximum, the two are different features."""
    return torch.cat([directions, -directions], dim=1)


def principal_components(covariance: Float[Tensor, "d_in d_in"]) -> Float[Tensor, "d_in d_in"]:
    """Principal components as columns, largest variance first."""
    return torch.linalg.eigh(covariance.double()).eigenvectors.flip(1).float()


class FrozenDecoder(NamedTuple):
    """A TopK SAE whose decoder is random and never trained."""

    encoder: Float[Tensor, "d_in n_features"]
    bias: Float[Tensor, " n_features"]
    center: Float[Tensor, " d_in"]


def train_with_frozen_decoder(
    recording: Recording,
    studies: Bool[np.ndarray, " n_studies"],
    *,
    n_features: int,
    k: int,
    center: Float[Tensor, " d_in"],
    n_steps: int = 300,
    seed: int = 0,
    learning_rate: float = 1e-3,
) -> FrozenDecoder:
    """Train the encoder of a TopK SAE for a random decoder (the baseline of arXiv 2602.14111).

    Args:
        recording: the activations.
        studies: whose tokens to train on.
        n_features: latents of the SAE.
        k: latents per token.
        center: bias of the decoder, which is not trained.
        n_steps: training steps of 1,024 tokens.
        seed: of decoder and batches.
        learning_rate: of Adam.
    """
    own = recording.only(studies)
    generator = torch.Generator().manual_seed(seed)
    decoder = random_directions(own.activations(0).shape[1], n_features, seed).T
    encoder = decoder.T.clone().requires_grad_()
    bias = torch.zeros(n_features, requires_grad=True)
    optimizer = torch.optim.Adam([encoder, bias], lr=learning_rate)
    tokens = torch.empty(0, decoder.shape[1])
    for _ in range(n_steps):
        if len(tokens) < _BATCH:
            drawn = torch.randint(own.n_studies, (64,), generator=generator).tolist()
            fresh = torch.cat([own.activations(study) for study in drawn]) - center
            tokens = torch.cat([tokens, fresh])[torch.randperm(len(tokens) + len(fresh), generator=generator)]
        batch, tokens = tokens[:_BATCH], tokens[_BATCH:]
        with torch.enable_grad():
            loss = (keep_top(batch @ encoder + bias, k) @ decoder - batch).pow(2).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return FrozenDecoder(encoder.detach(), bias.detach(), center)
