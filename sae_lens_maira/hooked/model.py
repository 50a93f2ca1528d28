"""HookedMaira2: MAIRA-2 as SAE-Lens, TransformerLens users and sae-dashboard expect a model to be.

Those libraries think of a model as a function of token ids. Here the ids are compact rows (:mod:`sae_lens_maira.rows`):

1. Each row's study token names a study; its full prompt and images are rebuilt and padded to the longest of the batch.
2. nnsight runs the real model and stops after the last layer that is wanted.
3. At each hook point that has hooks, activations are gathered at the row's positions and handed to the hooks; what they
   change is scattered back before the forward goes on.
4. Logits are computed for the positions that predict the row's tokens, and for no others.

Hook points are real TransformerLens ones, so ``run_with_hooks``, ``run_with_cache`` and ``hooks`` are its own.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

with warnings.catch_warnings():
    # TransformerLens 3 moved the class and warns about the place that version 2 has it in.
    warnings.simplefilter("ignore", DeprecationWarning)
    from transformer_lens.hook_points import HookedRootModule, HookPoint

from sae_lens_maira.data.study import Study
from sae_lens_maira.errors import HookPointError
from sae_lens_maira.hooked.points import apply_hooks, first, gather, is_active, torch_hooks
from sae_lens_maira.maira2 import Maira2ForConditionalGeneration, Maira2Processor
from sae_lens_maira.rows.dataset import StudyRows, build_rows
from sae_lens_maira.rows.policy import TokenPolicy
from sae_lens_maira.rows.reader import FullInputs, StudyReader
from sae_lens_maira.rows.row import PAD_POSITION, RowVocabulary
from sae_lens_maira.rows.tokenizer import ReadableTokenizer

ReturnType = Literal["logits", "loss", "both"] | None
Tokens = Int[Tensor, "batch context"]

_BLOCK_HOOKS = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")


@dataclass(frozen=True)
class HookedMaira2Config:
    """What libraries read from ``model.cfg``, in TransformerLens' names."""

    model_name: str
    n_layers: int
    d_model: int
    n_heads: int
    n_key_value_heads: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_ctx: int
    dtype: torch.dtype
    device: torch.device


class HookedMaira2(HookedRootModule):
    """A MAIRA-2 whose residual stream can be read and written on compact rows.

    Hook points are ``blocks.{i}.hook_resid_pre``, ``.hook_attn_out``, ``.hook_mlp_out`` and ``.hook_resid_post`` of
    shape (batch, context, d_model), and ``hook_image_embeds``, the projector's output, of shape (n_images,
    n_image_tokens, d_model) with the batch's images in the order of their placeholders.

    Args:
        model: in any dtype, on any device or devices.
        processor: the checkpoint's.
        studies: what study tokens refer to, by index. More can be added with :meth:`add_studies`.
        policy: which tokens rows keep.
        name: the checkpoint's folder or Hub id; the model's own if None.

    Attributes:
        nnsight: the nnsight model, for any experiment of your own; :meth:`full_inputs` gives it inputs.
    """

    nnsight: Any
    maira2: Any
    blocks: Any

    def __init__(
        self,
        model: Maira2ForConditionalGeneration,
        processor: Maira2Processor,
        studies: Sequence[Study] = (),
        policy: TokenPolicy | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__()
        from nnsight import NNsight

        self.policy = policy or TokenPolicy()
        config: Any = model.config
        text = config.text_config
        self.row_vocabulary = RowVocabulary(text.vocab_size)
        with warnings.catch_warnings():
            # transformers 4's Dinov2 has a submodule named `output`, which nnsight renames.
            warnings.simplefilter("ignore", UserWarning)
            # Not registered as children: `setup` would walk through all of the real model.
            self.__dict__["nnsight"] = NNsight(model)
        self.__dict__["maira2"] = model.eval()
        self.processor = processor
        self.tokenizer = ReadableTokenizer(processor.tokenizer, self.row_vocabulary)
        self.reader = StudyReader(studies, processor, self.policy, self.row_vocabulary)
        self.tokenizer.vocab.n_studies = len(self.reader.studies)
        self.cfg = HookedMaira2Config(
            model_name=name or config.name_or_path or "maira-2",
            n_layers=text.num_hidden_layers,
            d_model=text.hidden_size,
            n_heads=text.num_attention_heads,
            n_key_value_heads=text.num_key_value_heads,
            d_head=text.hidden_size // text.num_attention_heads,
            d_mlp=text.intermediate_size,
            d_vocab=text.vocab_size,
            n_ctx=config.n_positions,
            dtype=model.dtype,
            device=self.W_E.device,
        )
        self.blocks = nn.ModuleList(
            [nn.ModuleDict({hook: HookPoint() for hook in _BLOCK_HOOKS}) for _ in range(self.cfg.n_layers)]
        )
        self.hook_image_embeds = HookPoint()
        self.setup()

    @classmethod
    def from_pretrained(
        cls,
        name: Any,
        studies: Sequence[Study] = (),
        policy: TokenPolicy | None = None,
        **kwargs: Any,
    ) -> HookedMaira2:
        """Load a checkpoint and its processor.

        Args:
            name: a folder, a Hub id, or ``phantom`` for the model that is shipped with this package.
            studies: what study tokens refer to.
            policy: which tokens rows keep.
            kwargs: as for ``Maira2ForConditionalGeneration.from_pretrained``: ``dtype``, ``device_map``, ...
        """
        path = name
        if str(name) == "phantom":
            from sae_lens_maira.phantom.model.pretrained import PHANTOM_PATH

            path = PHANTOM_PATH
            kwargs.setdefault("dtype", torch.float32)
        where = {key: kwargs[key] for key in ("revision", "token", "cache_dir", "subfolder") if key in kwargs}
        model = Maira2ForConditionalGeneration.from_pretrained(path, **kwargs)
        return cls(model, Maira2Processor.from_pretrained(path, **where), studies, policy, name=str(name))

    # What SAE-Lens and sae-dashboard read.

    @property
    def W_U(self) -> Float[Tensor, "d_model n_row_ids"]:
        """Unembedding, and zeros for the ids of images and known studies: sae-dashboard looks up a row's ids in it."""
        unembedding = self.maira2.lm_head.weight.T
        n_row_ids = self.row_vocabulary.study_token(len(self.reader.studies))
        return nn.functional.pad(unembedding, (0, n_row_ids - self.cfg.d_vocab))

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """Embedding."""
        return self.maira2.get_input_embeddings().weight

    # Studies and rows.

    def add_studies(self, studies: Iterable[Study]) -> list[int]:
        """Make further studies known, and return their indices."""
        indices = self.reader.add(studies)
        self.tokenizer.vocab.n_studies = len(self.reader.studies)
        return indices

    def to_tokens(self, studies: Study | Sequence[Study] | str, context_size: int | None = None, **_: Any) -> Tokens:
        """Rows of studies, which are made known to the model; of a string, its token ids.

        Args:
            studies: one or more.
            context_size: cut or filled up to this length; the longest row's if None.
        """
        if isinstance(studies, str):
            return self.processor.tokenizer(studies, return_tensors="pt")["input_ids"].to(self.cfg.device)
        indices = self.add_studies([studies] if isinstance(studies, Study) else studies)
        return self.reader.rows(indices, context_size).to(self.cfg.device)

    def rows(self, context_size: int, **kwargs: Any) -> StudyRows:
        """All known studies as a dataset of rows; see :func:`~sae_lens_maira.rows.dataset.build_rows`."""
        return build_rows(
            self.reader.studies,
            self.processor,
            self.policy,
            context_size=context_size,
            d_vocab=self.cfg.d_vocab,
            **kwargs,
        )

    def full_inputs(self, tokens: Tokens | FullInputs, padding_side: Literal["left", "right"] = "right") -> FullInputs:
        """The real model's inputs for rows, on its device, and where the rows' tokens are in them.

        Inputs that are ready, such as those whose images were opened ahead, are taken as they are.

        Raises:
            RowError: a row is of other studies, another model or another policy.
        """
        inputs = tokens if isinstance(tokens, FullInputs) else self.reader.read(tokens, padding_side)
        return inputs.to(self.cfg.device)

    # Running.

    def forward(
        self,
        tokens: Tokens | FullInputs,
        return_type: ReturnType = "logits",
        loss_per_token: bool = False,
        stop_at_layer: int | None = None,
        prepend_bos: bool | None = None,
    ) -> Any:
        """Run the model on rows.

        Args:
            tokens: rows, or the starts of rows; where no loss is wanted, inputs made of them by :meth:`full_inputs`.
            return_type: logits of shape (batch, context, d_vocab), where position i predicts the row's token i + 1;
                the loss; both; or None, which runs no further than the last hook.
            loss_per_token: the loss as (batch, context - 1), 0 where the next token is an image's or padding, instead
                of its mean over all others.
            stop_at_layer: return the residual stream before this layer, of shape (batch, context, d_model), and run no
                further; negative counts from the end.
            prepend_bos: ignored: rows are whole.
        """
        inputs = self.full_inputs(tokens)
        if stop_at_layer is not None:
            return self._run(inputs, self._n_layers_to_run(stop_at_layer), wants_final=False)
        if return_type is None:
            self._run(inputs, self._n_layers_with_hooks(), wants_final=False)
            return None
        final = self._run(inputs, self.cfg.n_layers, wants_final=True)
        logits = self.maira2.lm_head(gather(final, inputs.predicting_positions.to(final.device)))
        if return_type == "logits":
            return logits
        if isinstance(tokens, FullInputs):
            raise ValueError("The loss needs rows; these are inputs made of them.")
        loss = self._loss(logits, tokens, inputs.predicting_positions, loss_per_token)
        return loss if return_type == "loss" else (logits, loss)

    def generate(self, studies: Study | Sequence[Study], max_new_tokens: int = 300, **kwargs: Any) -> list[str]:
        """Write reports, with the hooks that are active in a ``with model.hooks(...)`` block applied at every step.

        In the prompt, hooks see the rows' kept positions; then each new token, as (batch, 1, d_model). Generation is
        greedy unless ``kwargs`` say otherwise. The real model's ``generate`` runs here with PyTorch hooks: nnsight's
        step iterator may pass over decoded tokens, or run on after an early end.

        Args:
            studies: their findings, if any, are not shown to the model.
            max_new_tokens: an upper bound for each report.
            kwargs: as for transformers' ``generate``.
        """
        questions = self.reader.for_generation([studies] if isinstance(studies, Study) else list(studies))
        inputs = questions.to(self.cfg.device)
        with torch_hooks(self.maira2.model, self.hook_image_embeds, self.blocks, inputs.positions):
            output = self.maira2.generate(
                **inputs.model_inputs, **{"do_sample": False, "max_new_tokens": max_new_tokens, **kwargs}
            )
        return self.processor.decode_reports(output, inputs.model_inputs["input_ids"])

    def run_with_cache(self, *model_args: Any, names_filter: Any = None, **kwargs: Any) -> Any:
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

    def check_hook_name(self, name: str) -> None:
        """Refuse a hook point that does not exist.

        Raises:
            ValueError: naming those that are close to it.
        """
        if name not in self.hook_dict:
            close = difflib.get_close_matches(name, self.hook_dict, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(close)}?" if close else "see model.hook_dict."
            raise HookPointError(f"There is no hook point '{name}' in a model of {self.cfg.n_layers} layers; {hint}")

    def _n_layers_with_hooks(self) -> int:
        """How many layers have to run for every hook to be called."""
        active = [index for index, points in enumerate(self.blocks) if any(map(is_active, points.values()))]
        return max(active, default=-1) + 1

    def _n_layers_to_run(self, stop_at_layer: int) -> int:
        n_layers = self.cfg.n_layers
        stop = stop_at_layer + n_layers if stop_at_layer < 0 else stop_at_layer
        if not 0 <= stop <= n_layers:
            raise ValueError(f"stop_at_layer {stop_at_layer} is out of range for a model of {n_layers} layers.")
        return stop

    def _run(self, inputs: FullInputs, n_layers: int, wants_final: bool) -> Tensor:
        """Run the first layers inside one nnsight trace.

        Returns:
            the final norm's output at all full positions if ``wants_final``, else the residual stream after the last
            of the layers at the rows' positions.
        """
        found: list[Tensor] = []
        with self.nnsight.trace(**inputs.model_inputs, use_cache=False, logits_to_keep=1) as tracer:
            self._visit(inputs.positions, n_layers, wants_final, found)
            tracer.stop()
        return found[0]

    def _visit(self, positions: Tensor, n_layers: int, wants_final: bool, found: list[Tensor]) -> None:
        """Touch what is needed in the order in which it is computed, as nnsight asks."""
        maira2 = self.nnsight.model
        if is_active(self.hook_image_embeds):
            projector = maira2.multi_modal_projector
            projector.output = self.hook_image_embeds(projector.output)
        layers = maira2.language_model.layers
        for index in range(n_layers):
            layer, points = layers[index], self.blocks[index]
            for name, envoy, attribute in (
                ("hook_resid_pre", layer, "input"),
                ("hook_attn_out", layer.self_attn, "output"),
                ("hook_mlp_out", layer.mlp, "output"),
                ("hook_resid_post", layer, "output"),
            ):
                if is_active(points[name]):
                    changed = apply_hooks(points[name], getattr(envoy, attribute), positions)
                    if changed is not None:
                        setattr(envoy, attribute, changed)
        if wants_final:
            found.append(maira2.language_model.norm.output)
        elif n_layers == 0:
            found.append(gather(first(layers[0].input), positions))
        else:
            found.append(gather(first(layers[n_layers - 1].output), positions))

    def _loss(self, logits: Tensor, tokens: Tokens, predicting: Tensor, per_token: bool) -> Tensor:
        """Cross entropy of the rows' next tokens; images, padding and the begin of sequence are no targets."""
        targets = tokens[:, 1:].to(logits.device)
        is_target = (targets < self.cfg.d_vocab) & (targets != self.processor.tokenizer.pad_token_id)
        is_target &= predicting[:, :-1].to(logits.device) != PAD_POSITION
        # Over the last axis: the kernel for any other one sums with ten times the rounding error.
        losses = nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), targets.where(is_target, -100).flatten(), reduction="none"
        ).view_as(targets)
        return losses if per_token else losses.sum() / is_target.sum().clamp(min=1)
