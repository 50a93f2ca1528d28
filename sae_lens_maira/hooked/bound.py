"""A model bound to studies: its rows, tokens and sizes; :mod:`sae_lens_maira.hooked.model` adds the forward pass."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

with warnings.catch_warnings():
    # TransformerLens 3 moved the class, and warns when it is imported from its place in version 2.
    warnings.simplefilter("ignore", DeprecationWarning)
    from transformer_lens.hook_points import HookedRootModule, HookPoint

from sae_lens_maira.data.listed import as_source
from sae_lens_maira.data.source import StudySource
from sae_lens_maira.data.study import Study
from sae_lens_maira.errors import HookPointError
from sae_lens_maira.rows.dataset import StudyRows, build_rows
from sae_lens_maira.rows.policy import TokenPolicy
from sae_lens_maira.rows.reader import FullInputs, StudyReader
from sae_lens_maira.rows.row import RowVocabulary
from sae_lens_maira.rows.tokenizer import ReadableTokenizer
from sae_lens_maira.vlm import BLOCK_SITES, ModelSizes, PaddingSide, VisionLanguageModel

Tokens = Int[Tensor, "batch context"]
AnyTokens = Int[Tensor, "*shape"]
"""Rows as they are given: a wrong rank is refused in words."""
_Bound = TypeVar("_Bound", bound="BoundModel")


@dataclass(frozen=True)
class HookedModelConfig(ModelSizes):
    """The fields that libraries read from ``model.cfg``, with TransformerLens' names."""

    model_name: str
    dtype: torch.dtype
    device: torch.device


class BoundModel(HookedRootModule):
    """A vision-language model, its hook points, and the studies whose rows it reads.

    A model's studies and token policy never change: :meth:`with_studies` returns another model that shares the weights,
    at almost no cost.

    Args:
        vlm: the model behind its adapter.
        studies: the studies to which study tokens refer, by index.
        policy: which tokens rows keep.
        name: the checkpoint's folder or Hub id.
    """

    vlm: VisionLanguageModel
    nnsight: Any
    blocks: Any

    def __init__(
        self,
        vlm: VisionLanguageModel,
        studies: Sequence[Study] = (),
        policy: TokenPolicy | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__()
        from nnsight import NNsight

        with warnings.catch_warnings():
            # transformers 4's Dinov2 has a submodule named `output`, which nnsight renames.
            warnings.simplefilter("ignore", UserWarning)
            envoy = NNsight(vlm.module)
        config: Any = vlm.module.config
        self._bind(vlm, envoy, as_source(studies), policy or TokenPolicy(), name or config.name_or_path or vlm.family)

    def _bind(self, vlm: VisionLanguageModel, envoy: Any, studies: StudySource, policy: TokenPolicy, name: str) -> None:
        # Not registered as submodules: `setup` would visit every module of the real model.
        self.__dict__.update(vlm=vlm, nnsight=envoy)
        self.studies = studies
        self.policy = policy
        self.row_vocabulary = RowVocabulary(vlm.sizes.d_vocab)
        self.reader = StudyReader(studies, vlm.processor, policy, self.row_vocabulary)
        self.tokenizer = ReadableTokenizer(
            vlm.processor.tokenizer, self.row_vocabulary, lambda: self.reader.n_study_tokens
        )
        weight = self.W_E
        self.cfg = HookedModelConfig(**asdict(vlm.sizes), model_name=name, dtype=weight.dtype, device=weight.device)
        self._padded_unembedding: tuple[Any, Tensor] | None = None
        self.blocks = nn.ModuleList(
            [nn.ModuleDict({hook: HookPoint() for hook in BLOCK_SITES}) for _ in range(self.cfg.n_layers)]
        )
        self.hook_image_embeds = HookPoint()
        self.setup()

    def with_studies(self: _Bound, studies: Sequence[Study], policy: TokenPolicy | None = None) -> _Bound:
        """A model with the same weights, bound to other studies; hooks of this model are not copied.

        Args:
            studies: the studies to which study tokens refer.
            policy: which tokens rows keep; this model's if None.
        """
        bound = type(self).__new__(type(self))
        HookedRootModule.__init__(bound)
        bound._bind(self.vlm, self.nnsight, as_source(studies), policy or self.policy, self.cfg.model_name)
        return bound

    # What SAE-Lens and sae-dashboard read.

    @property
    def W_U(self) -> Float[Tensor, "d_model n_row_ids"]:
        """Unembedding, with zeros for the ids of images and studies, because sae-dashboard looks up ids of rows in it.

        It is computed once and cached, which takes as much memory as the unembedding itself.
        """
        weight = self._unembedding().weight
        n_row_ids = self.row_vocabulary.study_token(self.reader.n_study_tokens)
        key = (weight.data_ptr(), weight._version, n_row_ids)
        if self._padded_unembedding is None or self._padded_unembedding[0] != key:
            padded = nn.functional.pad(weight.detach().T, (0, n_row_ids - weight.shape[0]))
            self._padded_unembedding = (key, padded)
        return self._padded_unembedding[1]

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """Embedding."""
        module: Any = self.vlm.module
        return module.get_input_embeddings().weight

    def _unembedding(self) -> Any:
        module: Any = self.vlm.module
        return module.get_output_embeddings()

    # Studies and rows.

    def to_tokens(
        self,
        studies: Study | Sequence[Study] | str,
        context_size: int | None = None,
        *,
        prepend_bos: bool | None = None,
        truncate: bool = True,
        move_to_device: bool = True,
    ) -> Tokens:
        """Rows of any studies, or the token ids of a string.

        The model stays bound to its own studies. It remembers only the last few hundred other studies, so rows of older
        ones become invalid; to use more, bind them with :meth:`with_studies`.

        Args:
            studies: one study or several, or a string.
            context_size: rows are cut or padded to this length; to the longest row's if None.
            prepend_bos, truncate: ignored; accepted because TransformerLens' method has them.
            move_to_device: move the result to the model's device.
        """
        del prepend_bos, truncate
        if isinstance(studies, str):
            tokens = self.vlm.processor.tokenizer(studies, return_tensors="pt")["input_ids"]
        else:
            indices = self.reader.add_scratch([studies] if isinstance(studies, Study) else studies)
            tokens = self.reader.rows(indices, context_size)
        return tokens.to(self.cfg.device) if move_to_device else tokens

    def to_str_tokens(self, tokens: Int[Tensor, " context"] | Study | str) -> list[str]:
        """The readable texts of the tokens of a row, of a study's row, or of a string."""
        if isinstance(tokens, Study | str):
            tokens = self.to_tokens(tokens)[0]
        return self.tokenizer.row_to_texts(tokens.tolist())

    def rows(self, context_size: int, **kwargs: Any) -> StudyRows:
        """All studies as a dataset of rows; see :func:`~sae_lens_maira.rows.dataset.build_rows`."""
        return build_rows(
            self.studies,
            self.vlm.processor,
            self.policy,
            context_size=context_size,
            d_vocab=self.cfg.d_vocab,
            **kwargs,
        )

    def full_inputs(self, tokens: AnyTokens | FullInputs, padding_side: PaddingSide = "right") -> FullInputs:
        """The real model's inputs for rows, on its device, and the positions of the rows' tokens in them.

        Inputs that were made before, such as those whose images were opened ahead, are only moved to the device.

        Raises:
            RowError: a row was made with other studies, another model or another policy.
        """
        inputs = tokens if isinstance(tokens, FullInputs) else self.reader.read(tokens, padding_side)
        return inputs.to(self.cfg.device)

    def check_hook_name(self, name: str) -> None:
        """Refuse a hook point that does not exist.

        Raises:
            HookPointError: the message names similar hook points.
        """
        if name not in self.hook_dict:
            close = difflib.get_close_matches(name, self.hook_dict, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(close)}?" if close else "see model.hook_dict."
            raise HookPointError(f"There is no hook point '{name}' in a model of {self.cfg.n_layers} layers; {hint}")
