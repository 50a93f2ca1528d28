"""The control that no training went into: as many random directions as the SAE has latents, as sparse as the SAE is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_maira.features.recording import Recording

_N_TOKENS = 4096


class RandomDirections:
    """Encodes activations as an SAE does: projections on random unit vectors, of which the largest per token are kept.

    Args:
        directions: unit vectors.
        center: mean activation, which is subtracted first.
        k: projections kept per token; negative ones are never kept.
    """

    def __init__(self, directions: Float[Tensor, "n_features d_in"], center: Float[Tensor, " d_in"], k: int) -> None:
        self._directions, self._center, self._k = directions, center, k
        self.cfg = SimpleNamespace(d_sae=len(directions))
        self.device, self.dtype = torch.device("cpu"), torch.float32

    @classmethod
    def like(cls, sae: Any, recording: Recording, n_active: float, seed: int) -> RandomDirections:
        """As many directions as an SAE has latents.

        Args:
            sae: gives the sizes.
            recording: gives the mean activation.
            n_active: the SAE's mean number of active latents per token.
            seed: of the directions.
        """
        generator = torch.Generator().manual_seed(seed)
        directions = torch.randn(int(sae.cfg.d_sae), int(sae.cfg.d_in), generator=generator)
        sums = torch.stack([chunk.sum(dim=0) for chunk in recording.chunks(_N_TOKENS)]).sum(dim=0)
        unit = torch.nn.functional.normalize(directions, dim=-1)
        return cls(unit, sums / recording.n_tokens, max(round(n_active), 1))

    def encode(self, activations: Float[Tensor, "n_tokens d_in"]) -> Float[Tensor, "n_tokens n_features"]:
        """The kept projections, zero elsewhere."""
        projections = (activations.to(torch.float32) - self._center) @ self._directions.T
        values, places = projections.topk(self._k, dim=-1)
        return torch.zeros_like(projections).scatter(-1, places, values.clamp(min=0))
