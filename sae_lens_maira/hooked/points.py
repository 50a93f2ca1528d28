"""Hook points in a running model: gather at the rows' positions, call the hooks, scatter their changes back.

Two functions visit the sites of the active hook points: :func:`visit` inside an nnsight trace, and :func:`torch_hooks`
with PyTorch hooks, for generation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae_lens_maira.rows.row import PAD_POSITION
from sae_lens_maira.vlm import BLOCK_SITES, Site, VisionLanguageModel


def is_active(point: Any) -> bool:
    """Whether a hook point has hooks, or an SAE replaces it."""
    return bool(getattr(point, "fwd_hooks", True) or getattr(point, "bwd_hooks", True))


def hidden_states(value: Any) -> Tensor:
    """The activations in a module's input or output: some modules return tuples that start with them."""
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
    """Pass activations to a hook point's hooks.

    Args:
        point: the hook point.
        value: a module's input or output at all positions of the full prompt.
        positions: positions of the rows' tokens; None passes all of ``value``.

    Returns:
        ``value`` with the hooks' changes, or None if there are none.
    """
    full = hidden_states(value)
    if positions is None:
        changed = point(full)
    else:
        positions = positions.to(full.device)
        gathered = gather(full, positions)
        # A tensor's version counts in-place changes, which hooks may make. Inference tensors have no version.
        version = None if gathered.is_inference() else gathered._version
        answer = point(gathered)
        is_untouched = answer is gathered and version is not None and version == gathered._version
        # With gradients, the tensor that a hook saw must be on the path to the loss.
        if is_untouched and not gathered.requires_grad:
            return None
        kept = positions != PAD_POSITION
        changed = full.index_put((kept.nonzero()[:, 0], positions[kept]), answer[kept].to(full.dtype))
    return (changed, *value[1:]) if isinstance(value, tuple) else changed


def visit(
    vlm: VisionLanguageModel,
    envoy: Any,
    image_point: Any,
    blocks: Any,
    positions: Tensor,
    edits: Mapping[str, Callable[[Tensor], Tensor | None]],
) -> None:
    """Apply active hook points inside an nnsight trace, in the order in which their sites are computed.

    Args:
        vlm: gives the sites of hook points.
        envoy: nnsight's envoy of the whole model.
        image_point: the hook point of the image embeddings.
        blocks: the hook points of each layer that runs, by name.
        positions: positions of the rows' tokens in the prompt.
        edits: functions of the activations at all positions, by hook point; they come before hooks.
    """
    if is_active(image_point):
        embeddings = vlm.image_embeddings(envoy)
        embeddings.output = image_point(embeddings.output)
    layers = vlm.layers(envoy)
    for index, points in enumerate(blocks):
        for name, site in BLOCK_SITES.items():
            module = _at(layers[index], site)
            edit = edits.get(f"blocks.{index}.{name}")
            if edit is not None:
                value = getattr(module, site.side)
                edited = edit(hidden_states(value))
                setattr(module, site.side, (edited, *value[1:]) if isinstance(value, tuple) else edited)
            if is_active(points[name]):
                changed = apply_hooks(points[name], getattr(module, site.side), positions)
                if changed is not None:
                    setattr(module, site.side, changed)


@contextmanager
def torch_hooks(vlm: VisionLanguageModel, image_point: Any, blocks: Iterable[Any], positions: Tensor) -> Iterator[None]:
    """Apply active hook points with PyTorch hooks in every forward pass inside the ``with`` block.

    Args:
        vlm: the model that runs.
        image_point: the hook point of the image embeddings.
        blocks: the hook points of each layer, by name.
        positions: positions of the rows' tokens in the prompt. A forward pass over a single position is a new token,
            and hooks see all of it. If prompts are repeated, for beams or several answers, so are their positions.
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
        return lambda _module, _args, output: apply_hooks(point, output, where(hidden_states(output)))

    handles = []
    try:
        if is_active(image_point):
            embeddings = vlm.image_embeddings(vlm.module)
            handles.append(embeddings.register_forward_hook(lambda _module, _args, output: image_point(output)))
        for layer, points in zip(vlm.layers(vlm.module), blocks, strict=True):
            for name, site in BLOCK_SITES.items():
                if not is_active(points[name]):
                    continue
                module = _at(layer, site)
                if site.side == "input":
                    handles.append(module.register_forward_pre_hook(on_input(points[name]), with_kwargs=True))
                else:
                    handles.append(module.register_forward_hook(on_output(points[name])))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _at(layer: Any, site: Site) -> Any:
    return getattr(layer, site.submodule) if site.submodule else layer
