"""SAE-Lens's top-k activation modules with a fixed order for ties, which the dense pass selects with."""

import torch
from jaxtyping import Float
from sae_lens.saes.batchtopk_sae import BatchTopK
from sae_lens.saes.topk_sae import TopK
from torch import Tensor
from typing_extensions import override

from sae_lens_maira.sae.selection import batch_topk_mask, token_topk_mask


class OrderedBatchTopK(BatchTopK):
    """``BatchTopK`` that breaks ties in the order of (token, latent)."""

    @override
    def forward(self, x: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        flat = x.reshape(-1, x.shape[-1])
        mask = batch_topk_mask(flat.detach(), int(self.k * flat.shape[0]))
        return torch.where(mask, flat, 0.0).view(x.shape)


class OrderedTopK(TopK):
    """``TopK`` that breaks ties in the order of latents."""

    @override
    def forward(self, x: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        flat = x.reshape(-1, x.shape[-1])
        return torch.where(token_topk_mask(flat.detach(), int(self.k)), flat, 0.0).view(x.shape)
