"""A vision-language model as SAE-Lens, TransformerLens users and sae-dashboard expect a model to be.

Those libraries think of a model as a function of token ids. Here the ids are compact rows (:mod:`sae_lens_maira.rows`):

1. Each row's study token names a study; its full prompt and images are rebuilt and padded to the longest of the batch.
2. nnsight runs the real model and stops after the last layer that is needed.
3. At each hook point that has hooks, activations are gathered at the row's positions and passed to the hooks. Their
   changes are scattered back before the forward pass continues.
4. Logits are computed only at positions that predict the row's tokens.

Hook points are those of TransformerLens, and so are ``run_with_hooks``, ``run_with_cache`` and ``hooks``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, overload

from jaxtyping import Float
from torch import Tensor, nn

from sae_lens_maira.data.study import Study
from sae_lens_maira.errors import HookPointError, RowError, SteeringError
from sae_lens_maira.hooked.bound import AnyTokens, Tokens
from sae_lens_maira.hooked.edits import Edit
from sae_lens_maira.hooked.points import gather, hidden_states, is_active, torch_hooks, visit
from sae_lens_maira.hooked.saes import SpliceableModel
from sae_lens_maira.hooked.steered import Steering, edited_sites, make_steering
from sae_lens_maira.hooked.where import Where
from sae_lens_maira.rows.reader import FullInputs
from sae_lens_maira.rows.row import PAD_POSITION

ReturnType = Literal["logits", "loss", "both"] | None
Logits = Float[Tensor, "batch context d_vocab"]
Residual = Float[Tensor, "batch context d_model"]
Loss = Float[Tensor, ""] | Float[Tensor, "batch context_minus_1"]

_TRACING = threading.RLock()
"""nnsight can trace only one forward pass at a time, because its interventions share global state."""


class HookedVisionLanguageModel(SpliceableModel):
    """A vision-language model with a residual stream that can be read and edited on compact rows of studies.

    Hook points are ``blocks.{i}.hook_resid_pre``, ``.hook_attn_out``, ``.hook_mlp_out`` and ``.hook_resid_post`` of
    shape (batch, context, d_model), and ``hook_image_embeds``, the image embeddings that replace the placeholders, of
    shape (n_images, n_image_tokens, d_model) with the batch's images in the order of their placeholders.

    A model's studies and token policy never change: :meth:`with_studies` returns another model that shares the weights,
    at almost no cost.

    Args:
        vlm: the model behind its adapter.
        studies: the studies to which study tokens refer, by index.
        policy: which tokens rows keep.
        name: the checkpoint's folder or Hub id.

    Attributes:
        vlm: as given.
        nnsight: the nnsight model, for your own experiments; :meth:`full_inputs` makes its inputs.
        studies: the source of studies.
        policy: the token policy.
        reader: makes rows of studies and model inputs of rows.
        tokenizer: the checkpoint's tokenizer, which also reads rows.
        cfg: sizes, with TransformerLens' names.
    """

    _steering: Steering | None = None

    @overload
    def forward(
        self,
        tokens: Tokens | FullInputs,
        return_type: Literal["logits", "loss"] = "logits",
        loss_per_token: bool = False,
        stop_at_layer: int | None = None,
        prepend_bos: bool | None = None,
    ) -> Tensor: ...
    @overload
    def forward(
        self, tokens: Tokens, return_type: Literal["both"], loss_per_token: bool = False
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def forward(
        self, tokens: Tokens | FullInputs, return_type: None, *, stop_at_layer: int | None = None
    ) -> Tensor | None: ...
    def forward(
        self,
        tokens: AnyTokens | FullInputs,
        return_type: ReturnType = "logits",
        loss_per_token: bool = False,
        stop_at_layer: int | None = None,
        prepend_bos: bool | None = None,
    ) -> Logits | Loss | Residual | tuple[Logits, Loss] | None:
        """Run the model on rows.

        Args:
            tokens: rows, or the starts of rows. If no loss is returned, also inputs that :meth:`full_inputs` made.
            return_type: logits of shape (batch, context, d_vocab), where position i predicts the row's token i + 1;
                the loss; both; or None, which stops after the last hook.
            loss_per_token: return the loss per token, (batch, context - 1), instead of the mean. It is 0 where the next
                token belongs to an image or is padding; the mean leaves these out.
            stop_at_layer: stop before this layer and return the residual stream there, of shape (batch, context,
                d_model); negative numbers count from the end.
            prepend_bos: ignored, because rows are complete.
        """
        del prepend_bos
        with self._masked_saes(tokens):
            return self._forward(tokens, return_type, loss_per_token, stop_at_layer)

    def _forward(
        self, tokens: AnyTokens | FullInputs, return_type: ReturnType, loss_per_token: bool, stop_at_layer: int | None
    ) -> Tensor | tuple[Tensor, Tensor] | None:
        inputs = self.full_inputs(tokens)
        if stop_at_layer is not None:
            return self._run(inputs, self._n_layers_to_run(stop_at_layer), wants_final=False)
        if return_type is None:
            self._run(inputs, self._n_layers_with_hooks(), wants_final=False)
            return None
        final = self._run(inputs, self.cfg.n_layers, wants_final=True)
        logits = self._unembedding()(gather(final, inputs.predicting_positions.to(final.device)))
        if return_type == "logits":
            return logits
        if isinstance(tokens, FullInputs):
            raise RowError("The loss needs rows; these are inputs made of them.")
        loss = self._loss(logits, tokens, inputs.predicting_positions, loss_per_token)
        return loss if return_type == "loss" else (logits, loss)

    def generate(self, studies: Study | Sequence[Study], max_new_tokens: int | None = None, **kwargs: Any) -> list[str]:
        """Write reports, with the hooks that are active in a ``with model.hooks(...)`` block applied at every step.

        In the prompt, hooks see the rows' kept positions; after it, each new token, as (batch, 1, d_model). Generation
        is greedy unless ``kwargs`` say otherwise. It uses the real model's ``generate`` with PyTorch hooks, because
        nnsight's step iterator may skip generated tokens, or continue after an early end.

        Args:
            studies: the studies to report on; the model does not see their findings.
            max_new_tokens: largest number of tokens of a report; that of the model's own examples if None.
            kwargs: as for transformers' ``generate``.
        """
        questions = self.reader.for_generation([studies] if isinstance(studies, Study) else list(studies))
        inputs = questions.to(self.cfg.device)
        module: Any = self.vlm.module
        self._refuse_masks()
        changes = {} if self._steering is None else self._steering.changes(inputs)
        longest = max_new_tokens or self.vlm.processor.max_new_tokens
        settings = {"do_sample": False, "max_new_tokens": longest, **kwargs}
        with (
            edited_sites(self.vlm, changes),
            torch_hooks(self.vlm, self.hook_image_embeds, self.blocks, inputs.positions),
        ):
            output = module.generate(**inputs.model_inputs, **settings)
        return self.vlm.processor.decode(output, inputs.model_inputs["input_ids"])

    @contextmanager
    def steered(
        self,
        edits: Sequence[Edit],
        where: Where | None = None,
        *,
        saes: Any = None,
        strengths: Tensor | Mapping[str, Tensor] | None = None,
    ) -> Iterator[Steering]:
        """Edit latents or directions in a ``with`` block, at every position that ``where`` chooses.

        Args:
            edits: what to do, such as ``[Add(feature=139, dose=2)]``; see :mod:`sae_lens_maira.hooked.edits`.
            where: the positions; everywhere if None.
            saes: the SAE whose latents are edited, or several; those attached to the model if None.
            strengths: the unit of doses for each latent; measured on the model's first 64 studies if None.

        Yields:
            what is done, and how many positions it has reached so far.

        Raises:
            SteeringError: a latent, dose, direction or hook point is wrong.
            SaeMismatch: an SAE belongs to another model.
        """
        if self._steering is not None:
            raise SteeringError("The model is steered already; give all edits to one model.steered(...).")
        steering = make_steering(self, edits, where or Where(), saes, strengths)
        self._steering = steering
        try:
            yield steering
        finally:
            self._steering = None

    def run_with_cache(self, *model_args: Any, names_filter: Any = None, **kwargs: Any) -> tuple[Any, Any]:
        """TransformerLens' ``run_with_cache``; a name in ``names_filter`` that does not exist is an error."""
        if names_filter is not None and not callable(names_filter):
            for name in [names_filter] if isinstance(names_filter, str) else names_filter:
                self.check_hook_name(name)
        filtered: Any = names_filter
        return super().run_with_cache(*model_args, names_filter=filtered, **kwargs)

    def hooks(self, fwd_hooks: Any = (), bwd_hooks: Any = (), *args: Any, **kwargs: Any) -> Any:
        """TransformerLens' ``hooks``; a name that does not exist is an error."""
        for name, _ in (*fwd_hooks, *bwd_hooks):
            if isinstance(name, str):
                self.check_hook_name(name)
        return super().hooks(list(fwd_hooks), list(bwd_hooks), *args, **kwargs)

    def _n_layers_with_hooks(self) -> int:
        """Number of layers that must run so that every hook is called."""
        active = [index for index, points in enumerate(self.blocks) if any(map(is_active, points.values()))]
        return max(active, default=-1) + 1

    def _n_layers_to_run(self, stop_at_layer: int) -> int:
        n_layers = self.cfg.n_layers
        stop = stop_at_layer + n_layers if stop_at_layer < 0 else stop_at_layer
        if not 0 <= stop <= n_layers:
            raise HookPointError(f"stop_at_layer {stop_at_layer} is out of range for a model of {n_layers} layers.")
        return stop

    def _run(self, inputs: FullInputs, n_layers: int, wants_final: bool) -> Tensor:
        """Run the first layers inside one nnsight trace.

        Returns:
            the final norm's output at all positions of the full prompt if ``wants_final``, else the residual stream
            after these layers at the rows' positions.
        """
        found: list[Tensor] = []
        with _TRACING, self.nnsight.trace(**inputs.model_inputs, use_cache=False, logits_to_keep=1) as tracer:
            self._read(inputs, n_layers, wants_final, found)
            tracer.stop()
        return found[0]

    def _read(self, inputs: FullInputs, n_layers: int, wants_final: bool, found: list[Tensor]) -> None:
        """Read values in the order in which the model computes them, as nnsight requires."""
        positions = inputs.positions
        changes = {} if self._steering is None else self._steering.changes(inputs)
        visit(self.vlm, self.nnsight, self.hook_image_embeds, self.blocks[:n_layers], positions, changes)
        layers = self.vlm.layers(self.nnsight)
        if wants_final:
            found.append(self.vlm.final_norm(self.nnsight).output)
        elif n_layers == 0:
            found.append(gather(hidden_states(layers[0].input), positions))
        else:
            found.append(gather(hidden_states(layers[n_layers - 1].output), positions))

    def _loss(self, logits: Tensor, tokens: Tokens, predicting: Tensor, per_token: bool) -> Tensor:
        """Cross entropy of the rows' next tokens; images, padding and the begin of sequence do not count."""
        targets = tokens[:, 1:].to(logits.device)
        is_target = (targets < self.cfg.d_vocab) & (targets != self.tokenizer.pad_token_id)
        is_target &= predicting[:, :-1].to(logits.device) != PAD_POSITION
        # Over the last axis: the kernel for other axes has ten times the rounding error.
        losses = nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), targets.where(is_target, -100).flatten(), reduction="none"
        ).view_as(targets)
        return losses if per_token else losses.sum() / is_target.sum().clamp(min=1)
