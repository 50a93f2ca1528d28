"""What has to happen at the optimiser, which SAE-Lens's trainer makes itself and shows to nobody.

The first optimiser step that touches the SAE's decoder is found through PyTorch's global step hook. From then on
that one optimiser, and no other,

- runs Adam's fused kernel (the same update, one pass over memory instead of several);
- is followed by the renormalisation of a unit-norm decoder.

So a stock `LanguageModelSAETrainingRunner` gets both. The decoder's gradient parallel to its rows is removed in
autograd (`without_parallel_gradient`), where SAE-Lens's gradient clipping sees the result, as in dictionary_learning.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

_LINKED: weakref.WeakKeyDictionary[torch.nn.Module, Any] = weakref.WeakKeyDictionary()


def link_optimizer(sae: torch.nn.Module, fused: bool, unit_norm_decoder: bool) -> None:
    """Watch for the optimiser of `sae.W_dec`; calling it again for the same SAE does nothing."""
    if sae in _LINKED:
        return
    reference = weakref.ref(sae)

    def find(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        del args, kwargs
        sae = reference()
        if sae is None or getattr(optimizer, "_sae_lens_maira_linked", False):
            return
        if not any(parameter is sae.W_dec for group in optimizer.param_groups for parameter in group["params"]):
            return
        optimizer._sae_lens_maira_linked = True  # pyright: ignore[reportAttributeAccessIssue]
        if fused:
            use_fused_adam(optimizer)
        if unit_norm_decoder:
            optimizer.register_step_post_hook(lambda *_: _normalise_decoder(reference))

    handle = register_optimizer_step_pre_hook(find)
    _LINKED[sae] = handle
    weakref.finalize(sae, handle.remove)


def use_fused_adam(optimizer: torch.optim.Optimizer) -> None:
    """Switch an Adam optimiser's groups to the fused kernel where PyTorch has one; leave any other as it is."""
    if not isinstance(optimizer, torch.optim.Adam):
        return
    for group in optimizer.param_groups:
        parameters = group["params"]
        supported = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
        if not supported or group["foreach"] or group["differentiable"]:
            continue
        group["fused"] = True
        for parameter in parameters:
            state = optimizer.state.get(parameter, {})
            if "step" in state:
                state["step"] = torch.as_tensor(state["step"], dtype=torch.float32, device=parameter.device)


@torch.no_grad()
def normalise_rows_(weights: Float[Tensor, "n d"]) -> None:
    weights.div_(weights.norm(dim=-1, keepdim=True) + torch.finfo(weights.dtype).eps)


def _normalise_decoder(reference: weakref.ref[torch.nn.Module]) -> None:
    sae = reference()
    if sae is not None:
        normalise_rows_(sae.W_dec.data)  # pyright: ignore[reportArgumentType]


class _WithoutParallelGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(weights)
        return weights.view_as(weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (weights,) = ctx.saved_tensors
        directions = weights / (weights.norm(dim=-1, keepdim=True) + 1e-6)
        return grad - (grad * directions).sum(-1, keepdim=True) * directions


def without_parallel_gradient(weights: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The same weights, whose gradient loses its part parallel to each row."""
    return _WithoutParallelGradient.apply(weights)  # pyright: ignore[reportReturnType]
