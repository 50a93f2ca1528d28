"""MAIRA-2 as a transformers model, on transformers 4.56 and 5.x and without remote code.

The model is LLaVA with two parts exchanged (Bannur et al. 2024, "MAIRA-2: Grounded Radiology Report Generation",
arXiv 2406.04449): image features come from a Dinov2 backbone's feature map, final LayerNorm included, and the
projector has four linear layers. Everything else is transformers' own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModel, Dinov2Backbone, LlavaForConditionalGeneration
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import LlavaModel, LlavaPreTrainedModel

from sae_lens_maira.errors import PromptError
from sae_lens_maira.maira2.checkpoint import (
    check_folder,
    clear_loading_errors,
    raise_if_not_exact,
    tensors_on_demand,
)
from sae_lens_maira.maira2.configuration import TRANSFORMERS_5, Maira2Config


class Maira2MultiModalProjector(nn.Module):
    """``projector_n_layers`` linear layers with an activation between them, from image to token width."""

    def __init__(self, config: Maira2Config) -> None:
        super().__init__()
        vision: Any = config.vision_config
        text: Any = config.text_config
        bias = config.multimodal_projector_bias
        layers: list[nn.Module] = [nn.Linear(vision.hidden_size, text.hidden_size, bias=bias)]
        for _ in range(config.projector_n_layers - 1):
            layers.append(ACT2FN[config.projector_hidden_act])
            layers.append(nn.Linear(text.hidden_size, text.hidden_size, bias=bias))
        self.layers = nn.Sequential(*layers)

    def forward(
        self, image_features: Float[Tensor, "n_images n_patches d_vision"]
    ) -> Float[Tensor, "n_images n_patches d_model"]:
        return self.layers(image_features)


class Maira2Model(LlavaModel):
    """The vision backbone, the projector and the language model, without a language modelling head."""

    config_class = Maira2Config

    def __init__(self, config: Maira2Config) -> None:
        LlavaPreTrainedModel.__init__(self, config)
        vision_config: Any = config.vision_config
        self.vision_tower = Dinov2Backbone(vision_config)
        self.multi_modal_projector = Maira2MultiModalProjector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_image_features(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, pixel_values: Float[Tensor, "n_images 3 height width"], **_: Any
    ) -> Any:
        """Embed images as ``n_image_tokens`` token embeddings each.

        Returns:
            ``n_images`` tensors of shape (n_image_tokens, d_model), in the container that the installed
            transformers' LLaVA expects.
        """
        features = self.vision_tower(pixel_values).feature_maps[self.config.vision_feature_layer]
        if self.config.vision_feature_select_strategy == "default":
            features = features[:, 1:]  # the first is CLS
        embeddings: Any = list(self.multi_modal_projector(features))
        return BaseModelOutputWithPooling(pooler_output=embeddings) if TRANSFORMERS_5 else embeddings


class Maira2ForConditionalGeneration(LlavaForConditionalGeneration):
    """MAIRA-2 with its language modelling head.

    ``from_pretrained`` reads the official checkpoint layout (a folder or a Hub id) and what ``save_pretrained``
    wrote, which is the same layout.
    """

    config_class = Maira2Config

    def __init__(self, config: Maira2Config) -> None:
        LlavaPreTrainedModel.__init__(self, config)
        text_config: Any = config.text_config
        self.model = Maira2Model(config)
        self.lm_head = nn.Linear(text_config.hidden_size, text_config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint, in the ``dtype`` and on the ``device_map`` asked for.

        Args:
            pretrained_model_name_or_path: a folder or a Hub id, ``microsoft/maira-2`` for the official model.
            kwargs: as for any transformers model: ``dtype``, ``device_map``, ``revision``, ``token``, ...

        Raises:
            CheckpointError: not a MAIRA-2 checkpoint, files or keys missing or left over, or no access to a
                gated repository.
        """
        kwargs.pop("trust_remote_code", None)
        wants_info = kwargs.pop("output_loading_info", False)
        folder = Path(str(pretrained_model_name_or_path)).expanduser()
        if folder.is_dir():
            check_folder(folder / kwargs.get("subfolder", ""))
        # Keys of another shape are let through here, to be refused below together with all others.
        kwargs |= {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
        with clear_loading_errors(pretrained_model_name_or_path):
            loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model, info = loaded
        raise_if_not_exact(pretrained_model_name_or_path, info)
        return (model, info) if wants_info else model

    @staticmethod
    def _load_pretrained_model(model: Any, state_dict: Any, checkpoint_files: Any, *args: Any, **kwargs: Any) -> Any:
        """Read tensors one by one: transformers 5 maps all files at once, which doubles the resident memory."""
        if TRANSFORMERS_5 and state_dict is None and checkpoint_files:
            state_dict = tensors_on_demand(checkpoint_files)
        return LlavaForConditionalGeneration._load_pretrained_model(
            model, state_dict, checkpoint_files, *args, **kwargs
        )

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Any = None,
        pixel_values: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        logits_to_keep: Any = 0,
        token_kinds: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Compute logits, and the loss when ``labels`` are given.

        Args:
            input_ids: (batch, sequence) token ids with ``n_image_tokens`` placeholders an image.
            pixel_values: (n_images, 3, height, width), the images of all rows in the order of their placeholders.
            attention_mask: (batch, sequence), 0 at padding.
            position_ids: as for Llama.
            past_key_values: as for Llama.
            inputs_embeds: (batch, sequence, d_model) in place of ``input_ids``.
            labels: (batch, sequence), -100 where no loss is wanted.
            logits_to_keep: how many of the last positions get logits, or which ones; 0 means all.
            token_kinds: ignored; accepted so that a processor's whole output can be passed on.
            kwargs: as for ``LlavaForConditionalGeneration``: ``use_cache``, ``output_hidden_states``, ...

        Raises:
            PromptError: the input is longer than the model's positions.
        """
        self._check_length(input_ids, inputs_embeds, past_key_values)
        return super().forward(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    def _check_length(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, cache: Any) -> None:
        tokens = input_ids if input_ids is not None else inputs_embeds
        if tokens is None:
            return
        n_tokens = tokens.shape[1] + (cache.get_seq_length() if cache is not None else 0)
        if n_tokens > self.config.n_positions:
            raise PromptError(
                f"The input has {n_tokens} tokens but the model has {self.config.n_positions} positions; "
                "shorten a section or the prior report, or leave out an image."
            )


def register_checkpoint_layout() -> None:
    """Tell transformers how the official parameter names map to today's modules."""
    if TRANSFORMERS_5:
        from transformers.conversion_mapping import (
            get_checkpoint_conversion_mapping,
            register_checkpoint_conversion_mapping,
        )

        for ours, llava in ((Maira2Config.model_type, "llava"), ("Maira2Model", "LlavaModel")):
            mapping: Any = get_checkpoint_conversion_mapping(llava)
            register_checkpoint_conversion_mapping(ours, mapping, overwrite=True)
    # transformers 4 inherits LLaVA's `_checkpoint_conversion_mapping` with the class.
