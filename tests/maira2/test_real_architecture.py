"""The real sizes, without the real weights: names and shapes as in the official checkpoint."""

import re
from typing import Any

import pytest
import torch

from sae_lens_maira.maira2 import Maira2Config, Maira2ForConditionalGeneration

PREFIXES = [
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
]
# transformers 5 spells Dinov2's attention like this.
DINOV2 = [
    (
        r"\.attention\.([qkv])_proj\.",
        lambda m: f".attention.attention.{ {'q': 'query', 'k': 'key', 'v': 'value'}[m[1]] }.",
    ),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
]


def official_name(name: str) -> str:
    for pattern, replacement in PREFIXES:
        name = re.sub(pattern, replacement, name)
    if name.startswith("vision_tower."):
        for pattern, replacement in DINOV2:
            name = re.sub(pattern, replacement, name)
    return name


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Written out from the facts: ViT-B/14 at 518 px, a four-layer projector, the Vicuna-7B shape."""
    shapes: dict[str, tuple[int, ...]] = {
        "vision_tower.embeddings.cls_token": (1, 1, 768),
        "vision_tower.embeddings.mask_token": (1, 768),
        "vision_tower.embeddings.position_embeddings": (1, 1 + 37 * 37, 768),
        "vision_tower.embeddings.patch_embeddings.projection.weight": (768, 3, 14, 14),
        "vision_tower.embeddings.patch_embeddings.projection.bias": (768,),
        "vision_tower.layernorm.weight": (768,),
        "vision_tower.layernorm.bias": (768,),
        "language_model.model.embed_tokens.weight": (32207, 4096),
        "language_model.model.norm.weight": (4096,),
        "language_model.lm_head.weight": (32207, 4096),
    }
    for layer in range(12):
        prefix = f"vision_tower.encoder.layer.{layer}"
        for part in ("attention.attention.query", "attention.attention.key", "attention.attention.value"):
            shapes |= {f"{prefix}.{part}.weight": (768, 768), f"{prefix}.{part}.bias": (768,)}
        shapes |= {
            f"{prefix}.attention.output.dense.weight": (768, 768),
            f"{prefix}.attention.output.dense.bias": (768,),
            f"{prefix}.mlp.fc1.weight": (3072, 768),
            f"{prefix}.mlp.fc1.bias": (3072,),
            f"{prefix}.mlp.fc2.weight": (768, 3072),
            f"{prefix}.mlp.fc2.bias": (768,),
            f"{prefix}.layer_scale1.lambda1": (768,),
            f"{prefix}.layer_scale2.lambda1": (768,),
        }
        for norm in ("norm1", "norm2"):
            shapes |= {f"{prefix}.{norm}.weight": (768,), f"{prefix}.{norm}.bias": (768,)}
    for layer, d_in in ((0, 768), (2, 4096), (4, 4096), (6, 4096)):
        shapes |= {
            f"multi_modal_projector.layers.{layer}.weight": (4096, d_in),
            f"multi_modal_projector.layers.{layer}.bias": (4096,),
        }
    for layer in range(32):
        prefix = f"language_model.model.layers.{layer}"
        shapes |= {f"{prefix}.self_attn.{part}_proj.weight": (4096, 4096) for part in "qkvo"}
        shapes |= {f"{prefix}.mlp.{part}_proj.weight": (11008, 4096) for part in ("gate", "up")}
        shapes |= {
            f"{prefix}.mlp.down_proj.weight": (4096, 11008),
            f"{prefix}.input_layernorm.weight": (4096,),
            f"{prefix}.post_attention_layernorm.weight": (4096,),
        }
    return shapes


@pytest.fixture(scope="module")
def real_model():
    with torch.device("meta"):
        return Maira2ForConditionalGeneration(Maira2Config())


def test_names_and_shapes_are_the_official_ones(real_model):
    shapes = {official_name(name): tuple(tensor.shape) for name, tensor in real_model.state_dict().items()}
    assert shapes == expected_shapes()


def test_sizes_are_the_real_ones(real_model):
    n_bytes = sum(parameter.numel() * 4 for parameter in real_model.parameters())
    assert 27.0e9 < n_bytes < 28.0e9  # six fp32 shards of about 27.5 GB
    assert real_model.config.n_image_tokens == 37 * 37
    assert real_model.config.n_positions == 6144
    assert real_model.config.image_token_index == 32204


def test_rotary_embeddings_are_scaled_linearly():
    """Position p turns by p / 1.5 of what it would unscaled."""
    config: Any = Maira2Config()
    config.text_config.num_hidden_layers = 1
    with torch.device("meta"):
        model = Maira2ForConditionalGeneration(config)
    rotary_class = type(model.model.language_model.rotary_emb)
    rotary = rotary_class(config=config.text_config)
    frequencies = 1.0 / (10000.0 ** (torch.arange(0, 128, 2).float() / 128)) / 1.5
    assert torch.allclose(rotary.inv_freq, frequencies, rtol=1e-6)
