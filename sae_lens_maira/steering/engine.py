"""One prefill per study, and rows with different edits that continue it.

1. The prompt runs through the model once, the images' tower included. Its keys and values, and the residual stream
   that enters some layers, are kept.
2. Rows may edit different latents, by different doses, at different places. Only what their edits can change is
   computed again: from the first edited position on, in the layers above the first edited one. All else is shared.
3. New tokens run through all layers, as one batch of all rows.

The decoder layers are called one by one, as transformers' own language models do it, so any model works whose decoder
layers take a residual stream, rotary embeddings and a cache. Layers may lie on different devices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from sae_lens_maira.data.study import Study
from sae_lens_maira.errors import SteeringError
from sae_lens_maira.hooked.dictionary import Dictionary
from sae_lens_maira.hooked.edits import RowEdits, compile_rows, no_edits
from sae_lens_maira.hooked.model import HookedVisionLanguageModel
from sae_lens_maira.hooked.points import hidden_states
from sae_lens_maira.hooked.steered import changed_where, edited_sites, module_at
from sae_lens_maira.hooked.where import Where
from sae_lens_maira.steering.attention import KeysValues, SharedPrefixCache, shared_prefix
from sae_lens_maira.steering.continuation import Continuation, Prefill, Row
from sae_lens_maira.vlm import BLOCK_SITES


class SteeringEngine:
    """Runs rows with different edits from one prefill.

    Args:
        model: the model, on any devices.
        dictionaries: the SAE at each hook point that edits of latents use.

    Raises:
        SteeringError: the model's decoder layers cannot be called one by one.
    """

    def __init__(self, model: HookedVisionLanguageModel, dictionaries: Mapping[str, Dictionary]) -> None:
        self.model = model
        self.dictionaries = dict(dictionaries)
        self._module: Any = model.vlm.module
        self._layers: Any = model.vlm.layers(self._module)
        self._text: Any = self._language_model()
        self._embed: Any = self._module.get_input_embeddings()
        self._unembed: Any = self._module.get_output_embeddings()
        self._norm: Any = model.vlm.final_norm(self._module)
        self._kept = {self._level(hook) for hook in self.dictionaries} or {0}

    @torch.no_grad()
    def prefill(self, study: Study) -> Prefill:
        """Run a study's prompt once; the model does not see its findings."""
        inputs = self.model.reader.for_generation([study]).to(self.model.cfg.device)
        assert inputs.kinds is not None
        residuals: dict[int, Tensor] = {}

        def keep(level: int) -> Any:
            def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                residuals[level] = (args[0] if args else kwargs["hidden_states"]).detach()

            return hook

        places = [*self._layers, self._norm]
        handles = [places[level].register_forward_pre_hook(keep(level), with_kwargs=True) for level in self._kept]
        try:
            output = self._module(
                **inputs.model_inputs, past_key_values=DynamicCache(), use_cache=True, logits_to_keep=1
            )
        finally:
            for handle in handles:
                handle.remove()
        layers = [KeysValues(layer.keys, layer.values) for layer in output.past_key_values.layers]
        kinds = inputs.kinds[0].cpu().numpy()
        ids = inputs.model_inputs["input_ids"]
        return Prefill(study, ids, kinds, layers, residuals, output.logits[:, -1].detach())

    def start(self, prefill: Prefill, rows: Sequence[Row], added: Mapping[str, Tensor] | None = None) -> Continuation:
        """Rows that continue a prefill, with the prompt's edited positions computed again.

        Args:
            prefill: the prompt.
            rows: the edits of each row.
            added: further vectors of shape (rows, d_model) to add, by hook point; gradients may be taken of them.

        Raises:
            SteeringError: an edit is wrong, or a where-clause selects nothing in the study.
        """
        state, masks = self._continuation(prefill, rows, added or {})
        edited = masks.any(dim=0).nonzero()
        if len(edited) and state.edits:
            first = int(edited[0])
            level = min(self._level(name) for name in state.edits)
            self._share(state, prefill, level, first)
            x = self._residual(prefill, level)[:, first:].expand(len(rows), -1, -1)
            final = self._run(state, x, masks[:, first:], level, first)
            state.logits = self._unembed(self._norm(final[:, -1:]))[:, -1]
        return state

    def advance(self, state: Continuation, tokens: Int[Tensor, " rows"]) -> None:
        """Read one token of every row; the state then has the logits of the next one."""
        self.feed(state, tokens[:, None], only_last=True)

    def feed(
        self, state: Continuation, tokens: Int[Tensor, "rows n_new"], *, only_last: bool = False
    ) -> Float[Tensor, "rows _ d_vocab"]:
        """Read tokens of every row.

        Args:
            state: the rows; their next tokens' logits are replaced.
            tokens: token ids, the same number of each row.
            only_last: compute the logits after the last token alone.

        Returns:
            the logits after each token, or after the last one.
        """
        n_new = tokens.shape[1]
        masks = torch.tensor(
            [[row.where.edits_report_token(state.n_new + step) for step in range(n_new)] for row in state.rows],
            dtype=torch.bool,
        )
        start = state.prefill.ids.shape[1] + state.n_new
        x = self._embed(tokens.to(state.prefill.ids.device))
        self._count_asked(state, masks)
        final = self._run(state, x, masks, 0, start)
        logits = self._unembed(self._norm(final[:, -1:] if only_last else final))
        state.logits = logits[:, -1]
        state.n_new += n_new
        return logits

    def residual_at(self, prefill: Prefill, hook: str) -> Float[Tensor, "1 n_prompt d_model"]:
        """The unsteered residual stream of a prompt at a hook point of the residual stream.

        Raises:
            SteeringError: the hook point is inside of a layer.
        """
        if BLOCK_SITES[hook.split(".")[2]].submodule:
            raise SteeringError(f"'{hook}' is not in the residual stream; give a hook_resid_pre or hook_resid_post.")
        return self._residual(prefill, self._level(hook))

    @torch.no_grad()
    def lens(self, directions: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_vocab"]:
        """The logit lens: directions through the unembedding, without the final norm's scale."""
        weight = self._unembed.weight
        return directions.to(weight) @ weight.T

    def _continuation(
        self, prefill: Prefill, rows: Sequence[Row], added: Mapping[str, Tensor]
    ) -> tuple[Continuation, Bool[Tensor, "rows n_prompt"]]:
        width = self.model.cfg.d_model
        edits = compile_rows([row.edits for row in rows], self.dictionaries, width, self.model.cfg.device)
        has_edits = {name: torch.zeros(len(rows), dtype=torch.bool) for name in edits}
        for index, row in enumerate(rows):
            for edit in row.edits:
                has_edits[edit.hook or next(iter(self.dictionaries))][index] = True
        for name, vectors in added.items():
            own = edits.get(name) or no_edits(len(rows), self.dictionaries.get(name), width, vectors.device)
            edits[name] = replace(own, constant=own.constant + vectors)
            has_edits[name] = torch.ones(len(rows), dtype=torch.bool)
        masks = torch.zeros(len(rows), prefill.ids.shape[1], dtype=torch.bool)
        known: dict[Where, Tensor] = {}
        for index, row in enumerate(rows):
            if not row.edits and not added:
                continue
            if row.where not in known:
                known[row.where] = torch.from_numpy(row.where.prompt_mask(prefill.kinds, prefill.study.study_id))
            masks[index] = known[row.where]
        none = torch.zeros(len(rows), dtype=torch.long)
        state = Continuation(
            prefill,
            list(rows),
            edits,
            has_edits,
            SharedPrefixCache(prefill.layers, len(rows)),
            prefill.logits.expand(len(rows), -1),
            none,
            none.clone(),
        )
        self._count_asked(state, masks)
        return state, masks

    def _share(self, state: Continuation, prefill: Prefill, level: int, first: int) -> None:
        """Layers below the first edited one share the whole prompt, the others its part before the first position."""
        shared = [
            layer if index < level else KeysValues(layer.keys[:, :, :first], layer.values[:, :, :first])
            for index, layer in enumerate(prefill.layers)
        ]
        state.cache = SharedPrefixCache(shared, len(state.rows))

    def _run(
        self, state: Continuation, x: Tensor, masks: Bool[Tensor, "rows positions"], level: int, position: int
    ) -> Float[Tensor, "rows positions d_model"]:
        """Run the layers from one on, edits included; the last layer's residual stream."""
        positions = torch.arange(position, position + x.shape[1], device=x.device)[None]
        rotary = self._text.rotary_emb(x, positions)
        with shared_prefix(self._text.config), self._inner_edits(state, masks):
            for index in range(level, len(self._layers) + 1):
                for name in self._entering(state.edits, index):
                    x = self._edited(state, name, x, masks)
                if index == len(self._layers):
                    return x
                x = hidden_states(
                    self._layers[index](
                        x,
                        attention_mask=None,
                        position_ids=positions,
                        past_key_values=state.cache,
                        use_cache=True,
                        cache_position=positions[0],
                        position_embeddings=rotary,
                        steering_cache=state.cache,
                    )
                )
        raise AssertionError("unreachable")

    def _edited(self, state: Continuation, name: str, x: Tensor, masks: Tensor) -> Tensor:
        edits = state.edits[name]
        mask = masks & state.has_edits[name][:, None]
        state.n_edited += mask.sum(dim=1)
        if not mask.any():
            return x
        return changed_where(x, mask.to(x.device), edits.change(x.to(edits.constant.device)).to(x))

    @contextmanager
    def _inner_edits(self, state: Continuation, masks: Tensor) -> Iterator[None]:
        """Edits at hook points inside of layers, as PyTorch hooks."""

        def edit(name: str) -> Any:
            return lambda x: self._edited(state, name, x, masks)

        inner = [name for name in state.edits if BLOCK_SITES[name.split(".")[2]].submodule]
        with edited_sites(self.model.vlm, {name: edit(name) for name in inner}):
            yield

    def _count_asked(self, state: Continuation, masks: Tensor) -> None:
        for has in state.has_edits.values():
            state.n_asked += masks.sum(dim=1) * has

    def _entering(self, edits: Mapping[str, RowEdits], index: int) -> list[str]:
        """Edited hook points of the residual stream that enters a layer."""
        return [name for name in edits if self._level(name) == index and not BLOCK_SITES[name.split(".")[2]].submodule]

    def _level(self, hook: str) -> int:
        """The first layer whose input, or whose inside, an edit at a hook point changes."""
        module_at(self.model.vlm, hook)
        _, layer, site = hook.split(".")
        return int(layer) + (site == "hook_resid_post")

    def _residual(self, prefill: Prefill, level: int) -> Tensor:
        if level not in prefill.residuals:
            self._kept.add(level)
            prefill.residuals.update(self.prefill(prefill.study).residuals)
        return prefill.residuals[level]

    def _language_model(self) -> Any:
        for part in self._module.modules():
            if getattr(part, "layers", None) is self._layers and hasattr(part, "rotary_emb"):
                return part
        raise SteeringError(
            f"The decoder layers of '{self.model.vlm.family}' cannot be called one by one, because their rotary "
            "embeddings are not beside them; use model.steered(...) and generate instead."
        )
