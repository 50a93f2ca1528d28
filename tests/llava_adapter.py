"""A second model behind an adapter: a stock LLaVA of transformers, tiny and with random weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from sae_lens_maira.data.study import SECTION_KINDS, SECTIONS, VIEWS, Study, TokenKind
from sae_lens_maira.phantom.model.pretrained import PHANTOM_PATH
from sae_lens_maira.vlm import ModelSizes, PaddingSide, PromptText, RaggedTokenIds, TokenIds, pad_and_concatenate

IMAGE_SIZE, PATCH_SIZE = 28, 14
N_IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2
VIEW_KINDS = dict(zip(VIEWS, (TokenKind.FRONTAL_IMAGE, TokenKind.LATERAL_IMAGE, TokenKind.PRIOR_IMAGE), strict=True))


class LlavaStudyProcessor:
    """Asks for the findings of a study in a chat of one turn."""

    n_image_tokens = N_IMAGE_TOKENS
    max_new_tokens = 20

    def __init__(self, tokenizer: Any, image_processor: Any) -> None:
        self.tokenizer, self._image_processor = tokenizer, image_processor
        self.image_token_id = tokenizer.convert_tokens_to_ids("<image>")

    def encode(self, study: Study, text: PromptText) -> tuple[TokenIds, TokenIds]:
        pieces: list[tuple[list[int], TokenKind]] = [([self.tokenizer.bos_token_id], TokenKind.TEMPLATE)]
        pieces.append((self._ids("USER: "), TokenKind.TEMPLATE))
        for view, kind in VIEW_KINDS.items():
            if getattr(study, view) is not None:
                pieces.append(([self.image_token_id] * N_IMAGE_TOKENS, kind))
        for name in SECTIONS[:-1]:
            pieces.append((self._ids(f"{name.upper()}: "), TokenKind.TEMPLATE))
            pieces.append((self._ids(getattr(study, name) or "none"), SECTION_KINDS[name]))
        pieces.append((self._ids("ASSISTANT:"), TokenKind.TEMPLATE))
        if text == "findings":
            pieces.append((self._ids(study.findings or ""), TokenKind.FINDINGS))
            pieces.append(([self.tokenizer.eos_token_id], TokenKind.END))
        ids = [token for own, _ in pieces for token in own]
        return np.array(ids), np.array([kind for own, kind in pieces for _ in own])

    def images(self, study: Study) -> dict[str, Tensor]:
        opened = [getattr(study, view).open().convert("RGB") for view in VIEWS if getattr(study, view) is not None]
        return dict(self._image_processor(opened, return_tensors="pt"))

    def collate(
        self, ids: RaggedTokenIds, images: Sequence[Mapping[str, Tensor]], padding_side: PaddingSide
    ) -> dict[str, Tensor]:
        return pad_and_concatenate(ids, images, self.tokenizer.pad_token_id, padding_side)

    def decode(self, output_ids: Tensor, input_ids: Tensor) -> list[str]:
        return self.tokenizer.batch_decode(output_ids[:, input_ids.shape[1] :], skip_special_tokens=True)

    def fingerprint(self) -> str:
        return hashlib.sha256(self.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:16]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


class LlavaAdapter:
    """Where LLaVA's hook points are."""

    family = "llava"

    def __init__(self, module: LlavaForConditionalGeneration, processor: LlavaStudyProcessor) -> None:
        self.module, self.processor = module.eval(), processor
        text: Any = module.config.text_config
        self.sizes = ModelSizes.of(text, text.max_position_embeddings)

    def layers(self, root: Any) -> Any:
        return root.model.language_model.layers

    def image_embeddings(self, root: Any) -> Any:
        return root.model.multi_modal_projector

    def final_norm(self, root: Any) -> Any:
        return root.model.language_model.norm


def tiny_llava(n_layers: int = 3, d_model: int = 32) -> LlavaAdapter:
    """Random weights, the phantom's tokenizer, four tokens per image."""
    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(PHANTOM_PATH)
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )
    shape: dict[str, Any] = {"hidden_size": d_model, "intermediate_size": 48, "num_attention_heads": 4}
    text = LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=n_layers, num_key_value_heads=2, **shape)
    vision = CLIPVisionConfig(num_hidden_layers=2, image_size=IMAGE_SIZE, patch_size=PATCH_SIZE, **shape)
    image_token_id: Any = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=image_token_id)
    module = LlavaForConditionalGeneration(config)
    module.generation_config.pad_token_id = tokenizer.pad_token_id
    module.generation_config.eos_token_id = tokenizer.eos_token_id
    return LlavaAdapter(module, LlavaStudyProcessor(tokenizer, image_processor))
