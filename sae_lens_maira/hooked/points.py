"""Hook points applied to a running model: gather at the rows' positions, call the hooks, scatter what they changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae_lens_maira.rows.row import PAD_POSITION


def is_active(point: Any) -> bool:
    """Whether a hook point has hooks."""
    return bool(point.fwd_hooks or point.bwd_hooks)


def first(value: Any) -> Tensor:
    """The activations in a module's output: attention, and layers of some transformers versions, return tuples."""
    return value[0] if isinstance(value, tuple) else value


def gather(
    value: Float[Tensor, "batch sequence d_model"], positions: Int[Tensor, "batch context"]
) -> Float[Tensor, "batch context d_model"]:
    """Activations at rows' positions, zero at padding."""
    positions = positions.to(value.device)
    batch = torch.arange(len(positions), device=value.device)[:, None]
    gathered = value[batch, positions.clamp(min=0)]
    return gathered.masked_fill((positions == PAD_POSITION)[..., None], 0.0)


def apply_hooks(point: Any, value: Any, positions: Int[Tensor, "batch context"] | None) -> Any:
    """Hand activations to a hook point's hooks.

    Args:
        point: the hook point.
        value: a module's input or output at all full positions.
        positions: of the rows' tokens; None hands over all of ``value``.

    Returns:
        ``value`` with what the hooks changed, or None if they changed nothing.
    """
    full = first(value)
    if positions is None:
        changed = point(full)
    else:
        positions = positions.to(full.device)
        gathered = gather(full, positions)
        # The version counts changes in place, which hooks may make. Inference tensors have none.
        version = None if gathered.is_inference() else gathered._version
        answer = point(gathered)
        is_untouched = answer is gathered and version is not None and version == gathered._version
        # With gradients, what a hook saw has to lie on the path to the loss.
        if is_untouched and not gathered.requires_grad:
            return None
        kept = positions != PAD_POSITION
        changed = full.index_put((kept.nonzero()[:, 0], positions[kept]), answer[kept].to(full.dtype))
    return (changed, *value[1:]) if isinstance(value, tuple) else changed


@contextmanager
def torch_hooks(model: Any, image_point: Any, blocks: Iterable[Any], positions: Tensor) -> Iterator[None]:
    """Apply active hook points by PyTorch hooks, for as many forwards as run in the block.

    Args:
        model: the real model, without its head.
        image_point: the hook point of the projector's output.
        blocks: the hook points of each layer, by name.
        positions: of the rows' tokens in the prompt; a forward over one position is a new token, handed over whole.
            Where each prompt is repeated (for beams, or several answers), so are its positions.
    """

    def where(value: Tensor) -> Tensor | None:
        return positions.repeat_interleave(len(value) // len(positions), dim=0) if value.shape[1] > 1 else None

    def on_input(point: Any) -> Callable[..., Any]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            value = args[0] if args else kwargs["hidden_states"]
            changed = apply_hooks(point, value, where(value))
            if changed is None:
                return None
            return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})

        return hook

    def on_output(point: Any) -> Callable[..., Any]:
        return lambda _module, _args, output: apply_hooks(point, output, where(first(output)))

    handles = []
    try:
        if is_active(image_point):
            handles.append(model.multi_modal_projector.register_forward_hook(lambda _m, _a, out: image_point(out)))
        for layer, points in zip(model.language_model.layers, blocks, strict=True):
            if is_active(points["hook_resid_pre"]):
                hook = on_input(points["hook_resid_pre"])
                handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
            modules = {"hook_attn_out": layer.self_attn, "hook_mlp_out": layer.mlp, "hook_resid_post": layer}
            for name, module in modules.items():
                if is_active(points[name]):
                    handles.append(module.register_forward_hook(on_output(points[name])))
        yield
    finally:
        for handle in handles:
            handle.remove()
