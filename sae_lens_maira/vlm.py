"""The interface for models: what rows and hook points need from a vision-language model.

A model is added by one small file, its adapter, which implements two protocols:

1. :class:`StudyProcessor` turns a study into token ids, the kind of every token, and image inputs. Rows need only this.
2. :class:`VisionLanguageModel` says where in the module tree the hook points are.

:mod:`sae_lens_maira.maira2.adapter` is an example. No module in a higher layer depends on a particular model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sae_lens_maira.data.study import Study

PaddingSide = Literal["left", "right"]
PromptText = Literal["findings", "prompt"]
"""``findings`` appends the study's own report for teacher forcing; ``prompt`` has only the question."""
TokenIds = Int[np.ndarray, " n_tokens"]
RaggedTokenIds = Sequence[Int[np.ndarray, " _"]]
"""Token ids of several studies, of different lengths."""


class Site(NamedTuple):
    """Site of a block's hook point: a submodule of the layer (``""`` is the layer itself), and its input or output."""

    submodule: str
    side: Literal["input", "output"]


BLOCK_SITES: dict[str, Site] = {
    "hook_resid_pre": Site("", "input"),
    "hook_attn_out": Site("self_attn", "output"),
    "hook_mlp_out": Site("mlp", "output"),
    "hook_resid_post": Site("", "output"),
}
"""Hook points of a block in the order of computation, with the submodule names that transformers' decoders share."""


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of the language model, with TransformerLens' names; ``n_ctx`` counts positions of the full prompt."""

    n_layers: int
    d_model: int
    n_heads: int
    n_key_value_heads: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_ctx: int

    @classmethod
    def of(cls, text_config: Any, n_ctx: int) -> ModelSizes:
        """Sizes from the text configuration of a transformers model."""
        d_head = getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
        return cls(
            n_layers=text_config.num_hidden_layers,
            d_model=text_config.hidden_size,
            n_heads=text_config.num_attention_heads,
            n_key_value_heads=text_config.num_key_value_heads,
            d_head=d_head,
            d_mlp=text_config.intermediate_size,
            d_vocab=text_config.vocab_size,
            n_ctx=n_ctx,
        )


@runtime_checkable
class StudyProcessor(Protocol):
    """Turns studies into one model's inputs, and its output into reports.

    Attributes:
        tokenizer: the checkpoint's tokenizer, with a padding token.
        n_image_tokens: largest number of tokens of one image in a prompt.
        max_new_tokens: longest report in tokens, unless one asks for another.
    """

    @property
    def tokenizer(self) -> Any: ...
    @property
    def n_image_tokens(self) -> int: ...
    @property
    def max_new_tokens(self) -> int: ...

    def encode(self, study: Study, text: PromptText) -> tuple[TokenIds, TokenIds]:
        """Token ids of a study's full prompt, and the :class:`~sae_lens_maira.data.study.TokenKind` of each.

        An image is opened only if its number of tokens depends on its size.

        Raises:
            UserError: the study's text cannot be encoded.
        """
        ...

    def images(self, study: Study) -> dict[str, Tensor]:
        """Image inputs of one study in the order of their placeholders, such as ``pixel_values``; opens its images.

        Raises:
            ImageError: an image cannot be used.
        """
        ...

    def collate(
        self, ids: RaggedTokenIds, images: Sequence[Mapping[str, Tensor]], padding_side: PaddingSide
    ) -> dict[str, Tensor]:
        """The model's inputs for a batch: ``input_ids`` and ``attention_mask`` of shape (batch, sequence), and images.

        :func:`pad_and_concatenate` is enough for most models.
        """
        ...

    def decode(self, output_ids: Int[Tensor, "batch n_tokens"], input_ids: Int[Tensor, "batch n_prompt"]) -> list[str]:
        """Reports in the output of ``generate``, without the prompts."""
        ...

    def fingerprint(self) -> str:
        """A short hash of all that determines ids, kinds and image inputs; equal on all library versions."""
        ...


@runtime_checkable
class VisionLanguageModel(Protocol):
    """A loaded model, seen through its module tree.

    The methods take the module or its nnsight envoy, whose parts have the same names, and return a part of it.

    Attributes:
        family: short name of the architecture in the metadata of SAEs and caches, such as ``maira2``.
        module: the transformers model, in eval mode.
        sizes: sizes of its language model.
        processor: makes its inputs.
    """

    @property
    def family(self) -> str: ...
    @property
    def module(self) -> Any: ...
    @property
    def sizes(self) -> ModelSizes: ...
    @property
    def processor(self) -> StudyProcessor: ...

    def layers(self, root: Any) -> Any:
        """The decoder layers; :data:`BLOCK_SITES` are found in each."""
        ...

    def image_embeddings(self, root: Any) -> Any:
        """The module whose output replaces the images' placeholders."""
        ...

    def final_norm(self, root: Any) -> Any:
        """The module whose output is the unembedding's input."""
        ...


def pad_rows(rows: Sequence[np.ndarray], value: int, side: PaddingSide) -> Int[Tensor, "batch sequence"]:
    """Stack rows of different lengths; shorter ones are padded with a value on one side."""
    width = max(len(row) for row in rows)
    padded = torch.full((len(rows), width), int(value), dtype=torch.long)
    for target, row in zip(padded, rows, strict=True):
        target[slice(0, len(row)) if side == "right" else slice(width - len(row), width)] = torch.from_numpy(row)
    return padded


def pad_and_concatenate(
    ids: RaggedTokenIds, images: Iterable[Mapping[str, Tensor]], pad_token_id: int, side: PaddingSide
) -> dict[str, Tensor]:
    """Inputs of a batch: ids are padded, and image inputs of all studies are concatenated along the first dimension."""
    parts: dict[str, list[Tensor]] = {}
    for own in images:
        for name, tensor in own.items():
            parts.setdefault(name, []).append(tensor)
    return {
        "input_ids": pad_rows(ids, pad_token_id, side),
        "attention_mask": pad_rows([np.ones_like(row) for row in ids], 0, side),
        **{name: torch.cat(tensors) for name, tensors in parts.items()},
    }
