"""Reads an SAE's features from activations, as pre-activations that have gradients everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sae_lens_maira.hooked.embedded import Place
from sae_lens_maira.hooked.model import HookedVisionLanguageModel
from sae_lens_maira.vlm import VisionLanguageModel


class FeatureReader:
    """The features of one SAE in one model.

    Values are scaled by the norm of each feature's decoder row, as everywhere in this package.

    Args:
        model: the model that the SAE reads.
        sae: an SAE as SAE-Lens loads it; it is not changed.
        n_controls: random directions of norm 1 that are read after the features, as controls.
        seed: of the random directions.
    """

    def __init__(self, model: HookedVisionLanguageModel, sae: Any, n_controls: int = 0, seed: int = 0) -> None:
        self.vlm: VisionLanguageModel = model.vlm
        self.place = Place.of(str(sae.cfg.metadata.hook_name), model.cfg.n_layers)
        self.sae = sae
        self.n_features = int(sae.cfg.d_sae)
        self.decoder: Float[Tensor, "n_features d_in"] = sae.W_dec.detach()
        self._norms = self.decoder.norm(dim=-1)
        drawn = torch.randn(n_controls, self.decoder.shape[1], generator=torch.Generator().manual_seed(seed))
        self._controls = nn.functional.normalize(drawn, dim=-1).to(self.decoder)
        self.n_controls = n_controls

    def pre_activations(
        self, hidden: Float[Tensor, "*rest d_in"], features: Sequence[int] | None = None
    ) -> Float[Tensor, "*rest n_read"]:
        """Pre-activations: equal to the activations where features fire, and differentiable where they do not.

        Args:
            hidden: activations at the SAE's hook point.
            features: read these only; all if None.
        """
        chosen = slice(None) if features is None else list(features)
        inputs = self.sae.process_sae_in(hidden.to(self.decoder.dtype))
        weights, bias = self.sae.W_enc.detach()[:, chosen], self.sae.b_enc.detach()[chosen]
        return (inputs @ weights + bias) * self._norms[chosen]

    def activations(self, hidden: Float[Tensor, "*rest d_in"]) -> Float[Tensor, "*rest n_features"]:
        """Activations, scaled as the pre-activations are."""
        return self.sae.encode(hidden.to(self.decoder.dtype)) * self._norms

    def largest(self, hidden: Float[Tensor, "n_tokens d_in"]) -> Float[Tensor, " n_read"]:
        """The largest pre-activation of every feature over some tokens, and the largest value of every control."""
        controls = hidden.to(self.decoder.dtype) @ self._controls.T
        return torch.cat([self.pre_activations(hidden), controls], dim=1).max(dim=0).values

    @torch.no_grad()
    def fires(self, hidden: Float[Tensor, "n_tokens d_in"]) -> Bool[Tensor, " n_read"]:
        """Whether each feature fires at one of some tokens; controls never do."""
        fires = (self.activations(hidden) > 0).any(dim=0)
        return torch.cat([fires, fires.new_zeros(self.n_controls)])
