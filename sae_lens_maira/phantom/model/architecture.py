"""The phantom model's sizes: MAIRA-2's architecture, about a two-thousandth of its parameters."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerFast

from sae_lens_maira.maira2.configuration import Maira2Config
from sae_lens_maira.maira2.modeling import Maira2ForConditionalGeneration
from sae_lens_maira.maira2.processing import BitImageProcessor, Maira2Processor
from sae_lens_maira.phantom.generate import IMAGE_SIZE
from sae_lens_maira.phantom.model.tokenizer import CHAT_TEMPLATE, IMAGE_TOKEN

PATCH_SIZE = 14
IMAGE_MEAN, IMAGE_STD = 0.5307, 0.2583
"""MAIRA-2's normalization of gray levels from 0 to 1."""


def make_config(tokenizer: PreTrainedTokenizerFast, **sizes: int) -> Maira2Config:
    """The model's configuration.

    Args:
        tokenizer: gives the vocabulary's size and special ids.
        **sizes: replace the shipped model's ``d_vision``, ``n_vision_layers``, ``d_model``, ``n_layers``, ``d_mlp``.
    """
    size: dict[str, int] = {"d_vision": 128, "n_vision_layers": 6, "d_model": 160, "n_layers": 5, "d_mlp": 432, **sizes}
    vision: dict[str, Any] = {
        "model_type": "dinov2",
        "hidden_size": size["d_vision"],
        "num_hidden_layers": size["n_vision_layers"],
        "num_attention_heads": size["d_vision"] // 32,
        "mlp_ratio": 4,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "layerscale_value": 1.0,
        "out_features": [f"stage{size['n_vision_layers']}"],
        "apply_layernorm": True,
        "reshape_hidden_states": False,
    }
    text: dict[str, Any] = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": size["d_model"],
        "intermediate_size": size["d_mlp"],
        "num_hidden_layers": size["n_layers"],
        "num_attention_heads": size["d_model"] // 32,
        "num_key_value_heads": size["d_model"] // 32,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 1.5},
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
    }
    image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    assert isinstance(image_token_id, int)
    return Maira2Config(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token_id,
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        projector_n_layers=4,
        pad_token_id=tokenizer.pad_token_id,
    )


def initialize(model: Maira2ForConditionalGeneration) -> None:
    """Redraw the initial weights at a scale that suits small widths.

    The default standard deviation of 0.02 suits widths of thousands. With it, a tower of width 128 learns several times
    more slowly, and the projector's output almost vanishes.
    """
    for part in (model.model.vision_tower, model.model.language_model):
        for layer in part.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.9 / layer.in_features**0.5)
    projector = [layer for layer in model.model.multi_modal_projector.modules() if isinstance(layer, nn.Linear)]
    for layer in projector:
        nn.init.normal_(layer.weight, std=(2.0 / layer.in_features) ** 0.5)
    nn.init.normal_(projector[-1].weight, std=0.3 / projector[-1].in_features ** 0.5)
    nn.init.normal_(model.model.language_model.embed_tokens.weight, std=0.2)


def make_processor(tokenizer: PreTrainedTokenizerFast) -> Maira2Processor:
    """The processor: MAIRA-2's image pipeline at the phantom's size."""
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = BitImageProcessor(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size=side,
        resample=3,
        do_resize=True,
        do_center_crop=True,
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        do_convert_rgb=True,
        image_mean=[IMAGE_MEAN] * 3,
        image_std=[IMAGE_STD] * 3,
    )
    return Maira2Processor(images, tokenizer, patch_size=PATCH_SIZE, chat_template=CHAT_TEMPLATE)
