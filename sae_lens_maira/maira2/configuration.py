"""MAIRA-2's configuration: a LLaVA configuration with a deeper projector and a Dinov2 backbone.

The same ``config.json`` is read and written on transformers 4.56 and 5.x. The two differ in how they store rotary
embeddings (``rope_scaling`` and ``rope_theta`` against ``rope_parameters``). Files always use the older spelling, which
is that of the official checkpoint and which both versions read.
"""

from __future__ import annotations

from typing import Any, Literal

import transformers
from packaging.version import Version
from transformers import LlavaConfig

TRANSFORMERS_5 = Version(transformers.__version__).major >= 5

# Sizes of microsoft/maira-2: RAD-DINO (Dinov2 ViT-B/14 at 518 px) and Vicuna-7B v1.5.
_VISION_DEFAULTS: dict[str, Any] = {
    "model_type": "dinov2",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 518,
    "patch_size": 14,
    "out_features": ["stage12"],
    "apply_layernorm": True,
    "reshape_hidden_states": False,
}
_TEXT_DEFAULTS: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 32207,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 1.5},
    "pad_token_id": 0,
}


class Maira2Config(LlavaConfig):
    """Configuration of :class:`~sae_lens_maira.maira2.Maira2ForConditionalGeneration`.

    Without arguments it describes ``microsoft/maira-2``.

    Args:
        projector_n_layers: linear layers in the projector from image features to token embeddings.
        vision_config: a ``Dinov2Config`` or its dictionary.
        text_config: a ``LlamaConfig`` or its dictionary, with ``rope_scaling`` or ``rope_parameters``.
        kwargs: the remaining fields of ``LlavaConfig``.
    """

    model_type = "maira2"
    projector_n_layers: int = 4

    def __init__(
        self,
        vision_config: Any = None,
        text_config: Any = None,
        *,
        image_token_index: int = 32204,
        image_seq_length: int = 1369,
        vision_feature_layer: int = -1,
        vision_feature_select_strategy: Literal["default", "full"] = "default",
        projector_n_layers: int = 4,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("tie_word_embeddings", False)  # transformers 4 defaults to True
        if vision_config is None:
            vision_config = dict(_VISION_DEFAULTS)
        if text_config is None:
            text_config = dict(_TEXT_DEFAULTS)
        if isinstance(text_config, dict):
            text_config = _with_rope_scaling(text_config)
        super().__init__(
            vision_config=vision_config,
            text_config=text_config,
            image_token_index=image_token_index,
            image_seq_length=image_seq_length,
            vision_feature_layer=vision_feature_layer,
            vision_feature_select_strategy=vision_feature_select_strategy,
            **kwargs,
        )
        self.projector_n_layers = projector_n_layers

    @property
    def n_image_tokens(self) -> int:
        """Placeholder tokens per image: one per patch, plus CLS unless the strategy drops it."""
        vision: Any = self.vision_config
        n_patches = (vision.image_size // vision.patch_size) ** 2
        return n_patches + (self.vision_feature_select_strategy == "full")

    @property
    def n_positions(self) -> int:
        """Longest input in tokens: the trained positions times the linear rope scaling factor."""
        text: Any = self.text_config
        rope = getattr(text, "rope_parameters", None) if TRANSFORMERS_5 else text.rope_scaling
        factor = float((rope or {}).get("factor", 1.0))
        return int(text.max_position_embeddings * factor)

    def to_dict(self) -> dict[str, Any]:
        """All fields, in the official checkpoint's spelling."""
        fields = super().to_dict()
        fields["text_config"] = _with_rope_scaling(fields["text_config"])
        return fields

    def to_diff_dict(self) -> dict[str, Any]:
        """All fields, not only those that differ from a default: defaults change between library versions."""
        return self.to_dict()


def _with_rope_scaling(text_config: dict[str, Any]) -> dict[str, Any]:
    """Rewrite transformers 5's ``rope_parameters`` as ``rope_theta`` and ``rope_scaling``."""
    fields = dict(text_config)
    rope = fields.pop("rope_parameters", None)
    if rope is not None:
        rope = dict(rope)
        fields["rope_theta"] = rope.pop("rope_theta", fields.get("rope_theta", 10000.0))
        fields["rope_scaling"] = rope if rope.get("rope_type", "default") != "default" else None
    return fields
