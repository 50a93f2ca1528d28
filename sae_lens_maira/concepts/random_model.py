"""The model with random weights: what its size, its tokens and the pixels give away without any training."""

from __future__ import annotations

import copy

import torch

from sae_lens_maira.hooked import HookedMaira2


@torch.no_grad()
def random_copy(model: HookedMaira2, seed: int = 0) -> HookedMaira2:
    """The model, with every weight matrix drawn anew from a normal distribution with the matrix's own spread.

    Biases and the weights of norms are kept, so that activations have a usual size. The image encoder is random too.

    Args:
        model: stays as it is.
        seed: of the weights.
    """
    module = copy.deepcopy(model.maira2)
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            drawn = torch.randn(parameter.shape, generator=generator) * parameter.float().std().cpu()
            parameter.copy_(drawn.to(parameter.device, parameter.dtype))
    return HookedMaira2(module, model.processor, model.studies, model.policy, model.cfg.model_name)
