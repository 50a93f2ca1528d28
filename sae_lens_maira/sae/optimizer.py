"""Hooks into the optimizer that SAE-Lens's trainer creates internally.

The first optimizer step that touches the SAE's decoder is found through PyTorch's global step hook. From then on
that one optimizer, and no other,

- runs Adam's fused kernel (the same update, one pass over memory instead of several), on the transpose of an encoder
  that is stored latent by latent, because the kernel copies what is not contiguous. Without the
  transpose, a step takes 6% more processor time at d_in 1,024 and d_sae 8,192, and 2.5% more at 512 and 4,096; without
  the fused kernel, 14% more (benchmarks/README.md);
- is followed by the renormalization of a unit-norm decoder.

So a stock ``LanguageModelSAETrainingRunner`` gets both. The decoder's gradient parallel to its rows is removed in
autograd (``without_parallel_gradient``), where SAE-Lens's gradient clipping sees the result, as in dictionary_learning.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.optimizer import register_optimizer_step_pre_hook

_LINKED: weakref.WeakKeyDictionary[torch.nn.Module, Any] = weakref.WeakKeyDictionary()


def link_optimizer(sae: torch.nn.Module, fused: bool, unit_norm_decoder: bool) -> None:
    """Watch for the optimizer of ``sae.W_dec``; calling it again for the same SAE does nothing."""
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
            hidden: list[tuple[Tensor, Tensor]] = []
            optimizer.register_step_pre_hook(lambda optimizer, *_: hidden.extend(step_transposed(optimizer)))
            optimizer.register_step_post_hook(lambda *_: _show_gradients(hidden))
        if unit_norm_decoder:
            optimizer.register_step_post_hook(lambda *_: _normalize_decoder(reference))

    handle = register_optimizer_step_pre_hook(find)
    _LINKED[sae] = handle
    weakref.finalize(sae, handle.remove)


def use_fused_adam(optimizer: torch.optim.Optimizer) -> None:
    """Switch an Adam optimizer's groups to the fused kernel where PyTorch has one; leave any other as it is."""
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
def step_transposed(optimizer: torch.optim.Optimizer) -> list[tuple[Tensor, Tensor]]:
    """Step the matrices whose transpose is contiguous, and hide their gradients from the optimizer.

    Parameters, gradients and state keep their shapes and strides; Adam is elementwise, so only the views differ.

    Returns:
        The parameters and their gradients, to be restored after the step.
    """
    hidden = []
    for group in optimizer.param_groups:
        if not group.get("fused") or group.get("amsgrad"):
            continue
        for parameter in group["params"]:
            grad = parameter.grad
            if grad is None or grad.ndim != 2 or parameter.is_contiguous() or not parameter.T.is_contiguous():
                continue
            state = optimizer.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            # The fused kernel ignores strides, so all tensors must share them; those of a loaded state may differ.
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = _laid_out_like(parameter, state[name])
            adam(
                [parameter.detach().T],
                [_laid_out_like(parameter, grad).T],
                [state["exp_avg"].T],
                [state["exp_avg_sq"].T],
                [],
                [state["step"]],
                fused=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=group["maximize"],
                decoupled_weight_decay=group.get("decoupled_weight_decay", False),
            )
            hidden.append((parameter, grad))
            parameter.grad = None
    return hidden


def _show_gradients(hidden: list[tuple[Tensor, Tensor]]) -> None:
    while hidden:
        parameter, grad = hidden.pop()
        parameter.grad = grad


def latent_major(W_enc: Float[Tensor, "d_in d_sae"]) -> Float[Tensor, "d_in d_sae"]:
    """The same (d_in, d_sae) matrix, stored latent by latent."""
    return W_enc.T.contiguous().T


def _laid_out_like(model: Float[Tensor, "n d"], tensor: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return tensor if tensor.stride() == model.stride() else torch.empty_like(model, dtype=tensor.dtype).copy_(tensor)


@torch.no_grad()
def normalize_rows_(weights: Float[Tensor, "n d"]) -> None:
    """Scale each row to norm 1, in place."""
    weights.div_(weights.norm(dim=-1, keepdim=True) + torch.finfo(weights.dtype).eps)


def _normalize_decoder(reference: weakref.ref[torch.nn.Module]) -> None:
    sae = reference()
    if sae is not None:
        normalize_rows_(sae.W_dec.data)  # pyright: ignore[reportArgumentType]


class _WithoutParallelGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(weights)
        return weights.view_as(weights)

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (weights,) = ctx.saved_tensors
        directions = weights / (weights.norm(dim=-1, keepdim=True) + 1e-6)
        return grad - (grad * directions).sum(-1, keepdim=True) * directions


def without_parallel_gradient(weights: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The same weights, with the part of the gradient that is parallel to each row removed."""
    return _WithoutParallelGradient.apply(weights)  # pyright: ignore[reportReturnType]
