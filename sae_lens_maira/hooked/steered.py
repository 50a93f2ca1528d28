"""``with model.steered([Add(feature=139, dose=2)]):`` edits that act at all positions that a where-clause chooses.

Hook points of rows see the tokens that rows keep. Edits reach every position of the full prompt, image and template
tokens too. They come first: at the same hook point, an attached SAE or a hook sees the edited activations. Generation,
loss and ``run_with_cache`` work inside the block, and so does ``run_with_saes``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_maira.data.study import TokenKind
from sae_lens_maira.errors import SteeringError
from sae_lens_maira.hooked.dictionary import Dictionary, measure_firing
from sae_lens_maira.hooked.edits import Edit, RowEdits, compile_rows
from sae_lens_maira.hooked.identity import check_sae_fits
from sae_lens_maira.hooked.points import hidden_states
from sae_lens_maira.hooked.where import Where
from sae_lens_maira.rows.reader import FullInputs
from sae_lens_maira.vlm import BLOCK_SITES, Site, VisionLanguageModel

if TYPE_CHECKING:
    from sae_lens_maira.hooked.model import HookedVisionLanguageModel

ChangeAt = Callable[[Tensor], Tensor | None]
"""Activations of a hook point to edited ones; None leaves them as they are."""


@dataclass
class Steering:
    """The edits of a ``with model.steered(...)`` block, and how many positions they have reached.

    Args:
        edits: by hook point, for one row; all rows of a batch get them.
        where: the positions.

    Attributes:
        n_asked: positions that the where-clause chose in the forward passes so far, per hook point.
        n_edited: positions that were changed in them, per hook point.
    """

    edits: dict[str, RowEdits]
    where: Where
    n_asked: int = 0
    n_edited: dict[str, int] = field(default_factory=dict)

    def changes(self, inputs: FullInputs) -> dict[str, ChangeAt]:
        """The edits of each hook point, for forward passes over a batch: of whole prompts first, then of new tokens.

        Raises:
            SteeringError: the inputs do not say what their tokens are, or nothing is selected in one of them.
        """
        if inputs.kinds is None:
            raise SteeringError("These inputs do not say the kinds of their tokens; make them with full_inputs(rows).")
        prompt = prompt_masks(self.where, inputs.kinds)
        first = next(iter(self.edits), None)

        def edit(name: str) -> ChangeAt:
            n_steps = 0

            def change(x: Tensor) -> Tensor:
                nonlocal n_steps
                if x.shape[1] > 1:
                    mask = prompt.repeat_interleave(len(x) // len(prompt), dim=0)
                else:
                    mask = torch.full(x.shape[:2], self.where.edits_report_token(n_steps), device=prompt.device)
                    n_steps += 1
                n_chosen = int(mask.sum())
                self.n_asked += n_chosen if name == first else 0
                self.n_edited[name] = self.n_edited.get(name, 0) + n_chosen
                return changed_where(x, mask, self._change(name, x))

            return change

        return {name: edit(name) for name in self.edits}

    def _change(self, name: str, x: Float[Tensor, "rows positions d_in"]) -> Float[Tensor, "rows positions d_in"]:
        edits = self.edits[name]
        moved = x.to(edits.constant.device).reshape(1, -1, x.shape[-1])
        return edits.change(moved).reshape(x.shape).to(x)


def prompt_masks(where: Where, kinds: Int[Tensor, "rows positions"]) -> Bool[Tensor, "rows positions"]:
    """The edited positions of a batch of full prompts.

    Raises:
        SteeringError: nothing is selected in one of them.
    """
    found: list[np.ndarray] = []
    for number, own in enumerate(kinds.cpu().numpy()):
        # A prompt with its report is complete: nothing that is generated later could be meant instead.
        mask = where.mask(own) if TokenKind.FINDINGS in own else where.prompt_mask(own, f"number {number}")
        if not mask.any() and TokenKind.FINDINGS in own:
            raise SteeringError(f"{where} selects nothing in row {number} of the batch; include a place that it has.")
        found.append(mask)
    return torch.from_numpy(np.stack(found)).to(kinds.device)


def changed_where(
    x: Float[Tensor, "rows positions d_in"],
    mask: Bool[Tensor, "rows positions"],
    change: Float[Tensor, "rows positions d_in"],
) -> Float[Tensor, "rows positions d_in"]:
    """Activations with a change at some positions; all others keep their bits."""
    return torch.where(mask.to(x.device)[..., None], x + change, x)


@contextmanager
def edited_sites(vlm: VisionLanguageModel, changes: Mapping[str, ChangeAt]) -> Iterator[None]:
    """Replace activations at hook points, at all positions, in every forward pass inside the block.

    Args:
        vlm: the model that runs.
        changes: a function for each hook point.
    """
    with ExitStack() as stack:
        for name, change in changes.items():
            module, side = module_at(vlm, name)
            if side == "input":
                handle = module.register_forward_pre_hook(_on_input(change), with_kwargs=True, prepend=True)
            else:
                handle = module.register_forward_hook(_on_output(change), prepend=True)
            stack.callback(handle.remove)
        yield


def module_at(vlm: VisionLanguageModel, name: str) -> tuple[Any, str]:
    """The module of a block's hook point, and whether its input or output is meant.

    Raises:
        SteeringError: it is no hook point of a block.
    """
    parts = name.split(".")
    if len(parts) != 3 or parts[0] != "blocks" or not parts[1].isdigit() or parts[2] not in BLOCK_SITES:
        raise SteeringError(
            f"'{name}' cannot be edited; choose a block's hook point, such as blocks.2.hook_resid_post."
        )
    layers = vlm.layers(vlm.module)
    if int(parts[1]) >= len(layers):
        raise SteeringError(f"There is no hook point '{name}' in a model of {len(layers)} layers.")
    site: Site = BLOCK_SITES[parts[2]]
    layer = layers[int(parts[1])]
    return (getattr(layer, site.submodule) if site.submodule else layer), site.side


def as_dictionaries(
    model: HookedVisionLanguageModel,
    saes: Any,
    strengths: Float[Tensor, " d_sae"] | Mapping[str, Tensor] | None,
) -> dict[str, Dictionary]:
    """SAEs by their hook points, with their latents' strengths.

    Args:
        model: the model, which is asked for strengths that are not given.
        saes: an SAE, several, a :class:`Dictionary` or several, or None for those that are attached to the model.
        strengths: of the latents, or of each hook point's.

    Raises:
        SaeMismatch: an SAE belongs to another model.
    """
    if saes is None:
        saes = list(model.acts_to_saes.values())
    given = list(saes) if isinstance(saes, Sequence) else [saes]
    found: dict[str, Dictionary] = {}
    for sae in given:
        if isinstance(sae, Dictionary):
            found[sae.hook_name] = sae
            continue
        check_sae_fits(sae, model)
        name = str(sae.cfg.metadata.hook_name)
        own = strengths.get(name) if isinstance(strengths, Mapping) else strengths
        found[name] = Dictionary(sae, measure_firing(model, sae).strengths if own is None else own)
    return found


def make_steering(
    model: HookedVisionLanguageModel,
    edits: Sequence[Edit],
    where: Where,
    saes: Any,
    strengths: Float[Tensor, " d_sae"] | Mapping[str, Tensor] | None,
) -> Steering:
    """Checked edits for all rows of a model's batches; see :meth:`HookedVisionLanguageModel.steered`."""
    dictionaries = as_dictionaries(model, saes, strengths)
    compiled = compile_rows([edits], dictionaries, model.cfg.d_model, model.cfg.device)
    for name in compiled:
        module_at(model.vlm, name)
    return Steering(compiled, where)


def _on_input(change: ChangeAt) -> Callable[..., Any]:
    def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        changed = change(args[0] if args else kwargs["hidden_states"])
        if changed is None:
            return None
        return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})

    return hook


def _on_output(change: ChangeAt) -> Callable[..., Any]:
    def hook(_module: Any, _args: Any, output: Any) -> Any:
        changed = change(hidden_states(output))
        if changed is None:
            return None
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return hook
