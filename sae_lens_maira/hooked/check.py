"""A check at load time: compares a raw forward pass with a hooked one.

An adapter names modules. A wrong name fails at once, but a wrong module with outputs of the right shape does not, and a
new version of a library may return other values at the same place. So a few tokens of text run through the model twice:
with PyTorch hooks on the modules that the adapter names, and through the hook points. nnterp has similar checks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sae_lens_maira.hooked.points import hidden_states
from sae_lens_maira.rows.reader import FullInputs
from sae_lens_maira.vlm import BLOCK_SITES

if TYPE_CHECKING:
    from sae_lens_maira.hooked.model import HookedVisionLanguageModel

_N_TOKENS = 6


class HookPointMismatch(RuntimeError):
    """A hook point does not see the model's activations; the adapter or a library is at fault."""


@torch.no_grad()
def check_hook_points(model: HookedVisionLanguageModel) -> None:
    """Compare what every hook point of every block sees with what PyTorch hooks see, bit for bit.

    The residual stream after the last layer is also compared with the input of the final norm.

    Args:
        model: the model to check; it runs twice on six tokens of text, without an image.

    Raises:
        HookPointMismatch: the message names the first hook point that differs.
    """
    inputs = _text_inputs(model)
    expected, into_norm = _raw_activations(model, inputs)
    names = list(expected)
    _, cache = model.run_with_cache(inputs, names_filter=names, return_type=None)
    last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    for name in names:
        if not torch.equal(cache[name], expected[name]):
            raise HookPointMismatch(f"{name} of '{model.cfg.model_name}' does not see what the model computes there.")
    if not torch.equal(into_norm, expected[last]):
        raise HookPointMismatch(
            f"{last} of '{model.cfg.model_name}' is not what the final norm reads; the adapter names other layers."
        )


def _text_inputs(model: HookedVisionLanguageModel) -> FullInputs:
    ids = torch.arange(1, _N_TOKENS + 1)[None]
    positions = torch.arange(_N_TOKENS)[None]
    inputs = FullInputs({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, positions, positions)
    return inputs.to(model.cfg.device)


def _raw_activations(model: HookedVisionLanguageModel, inputs: FullInputs) -> tuple[dict[str, Tensor], Tensor]:
    found: dict[str, Tensor] = {}
    into_norm: list[Tensor] = []

    def keep(name: str, side: str) -> Any:
        def on_input(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found[name] = (args[0] if args else kwargs["hidden_states"]).clone()

        def on_output(_module: Any, _args: Any, output: Any) -> None:
            found[name] = hidden_states(output).clone()

        return on_input if side == "input" else on_output

    module: Any = model.vlm.module
    norm = model.vlm.final_norm(module)
    handles = [norm.register_forward_pre_hook(lambda _module, args: into_norm.append(args[0].clone()))]
    for index, layer in enumerate(model.vlm.layers(module)):
        for point, site in BLOCK_SITES.items():
            at = getattr(layer, site.submodule) if site.submodule else layer
            hook = keep(f"blocks.{index}.{point}", site.side)
            handles.append(
                at.register_forward_pre_hook(hook, with_kwargs=True)
                if site.side == "input"
                else at.register_forward_hook(hook)
            )
    try:
        module(**inputs.model_inputs, use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    return found, into_norm[0]
