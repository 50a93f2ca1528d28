"""An SAE as edits use it: a few latents' activations, decoder rows, and how strongly each latent fires.

The *strength* of a latent is a high percentile of its positive activations on the tokens that the SAE reads. It is the
unit of doses: a dose of 1 is what the latent shows when it clearly fires.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_maira.errors import SteeringError

if TYPE_CHECKING:
    from sae_lens_maira.hooked.model import HookedVisionLanguageModel

STRENGTH_PERCENTILE = 99.0
N_STRENGTH_STUDIES = 64
_POSITIONS_AT_ONCE = 8192
_BATCH_SIZE = 8


@dataclass(frozen=True, eq=False)
class Dictionary:
    """An SAE and the strengths of its latents.

    Args:
        sae: the SAE, as SAE-Lens loads it; it is never modified.
        strengths: of each latent; 0 where a latent never fired, and a dose of it is refused.
    """

    sae: Any
    strengths: Float[Tensor, " d_sae"]

    def __post_init__(self) -> None:
        normalization = str(getattr(self.sae.cfg, "normalize_activations", "none"))
        if normalization in ("layer_norm", "constant_norm_rescale"):
            raise SteeringError(
                f"The SAE rescales every token (normalize_activations: {normalization}), so that its latents have no "
                "fixed directions; steer with an SAE that does not."
            )
        if not torch.isfinite(self.strengths).all() or bool((self.strengths < 0).any()):
            raise SteeringError("Strengths of latents must be finite and not negative; measure them again.")

    @property
    def hook_name(self) -> str:
        """The SAE's hook point."""
        return str(self.sae.cfg.metadata.hook_name)

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return int(self.sae.cfg.d_sae)

    @property
    def decoder(self) -> Float[Tensor, "d_sae d_in"]:
        """Decoder rows."""
        return self.sae.W_dec.detach()

    def activations(
        self, x: Float[Tensor, "rows positions d_in"], features: Int[Tensor, " n_features"]
    ) -> Float[Tensor, "rows positions n_features"]:
        """Activations of some latents."""
        flat = x.flatten(0, 1)
        parts = [
            self.sae.encode(part.to(self.sae.W_dec)).index_select(1, features.to(self.sae.W_dec.device))
            for part in flat.split(_POSITIONS_AT_ONCE)
        ]
        return torch.cat(parts).to(x).unflatten(0, x.shape[:2])


@dataclass(frozen=True, eq=False)
class Firing:
    """How every latent fires on the kept tokens of some studies.

    Args:
        strengths: a high percentile of its positive activations; 0 if there are none.
        densities: share of the tokens at which it is positive.
    """

    strengths: Float[Tensor, " d_sae"]
    densities: Float[Tensor, " d_sae"]


@torch.no_grad()
def measure_firing(
    model: HookedVisionLanguageModel,
    sae: Any,
    studies: Sequence[int] | None = None,
    percentile: float = STRENGTH_PERCENTILE,
) -> Firing:
    """The strength and density of every latent on the kept tokens of studies.

    Args:
        model: bound to the studies.
        sae: the SAE.
        studies: indices of the model's studies; the first 64 if None.
        percentile: of the positive activations.

    Raises:
        SteeringError: the model is bound to no study.
    """
    indices = list(range(min(len(model.studies), N_STRENGTH_STUDIES)) if studies is None else studies)
    if not indices:
        raise SteeringError("The model is bound to no study to measure strengths on; use model.with_studies(...).")
    hook, pad = str(sae.cfg.metadata.hook_name), model.tokenizer.pad_token_id
    found: list[Tensor] = []
    for start in range(0, len(indices), _BATCH_SIZE):
        rows = model.reader.rows(indices[start : start + _BATCH_SIZE], None).to(model.cfg.device)
        _, cache = model.run_with_cache(rows, names_filter=[hook], return_type=None)
        x = cache[hook][(rows != pad).to(cache[hook].device)]
        found.append(sae.encode(x.to(sae.W_dec)).float().cpu())
    activations = torch.cat(found)
    positive = torch.where(activations > 0, activations, torch.nan)
    # One column at a time would be slow, and all at once takes several times the memory.
    parts = [torch.nanquantile(part, percentile / 100, dim=0) for part in positive.split(512, dim=1)]
    return Firing(torch.cat(parts).nan_to_num(0.0), (activations > 0).float().mean(dim=0))
