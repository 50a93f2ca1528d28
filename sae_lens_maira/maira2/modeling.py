"""MAIRA-2 as a transformers model, on transformers 4.56 and 5.x and without remote code.

The model is LLaVA with two parts replaced (Bannur et al. 2024, "MAIRA-2: Grounded Radiology Report Generation",
arXiv 2406.04449): image features come from a Dinov2 backbone's feature map, final LayerNorm included, and the
projector has four linear layers. Everything else is transformers' own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

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
from sae_lens_maira.maira2.generation import check_length, images_per_row, repeated_order

if TYPE_CHECKING:
    from typing_extensions import Self


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
    """The vision backbone, the projector and the language model, without a language modeling head."""

    config_class = Maira2Config

    def __init__(self, config: Maira2Config) -> None:
        LlavaPreTrainedModel.__init__(self, config)
        vision_config: Any = config.vision_config
        self.vision_tower = Dinov2Backbone(vision_config)
        self.multi_modal_projector = Maira2MultiModalProjector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_image_features(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        pixel_values: Float[Tensor, "n_images 3 height width"],
        vision_feature_layer: int | None = None,
        vision_feature_select_strategy: str | None = None,
        image_sizes: None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Embed images as ``n_image_tokens`` token embeddings each.

        Args:
            pixel_values: pixels of the images.
            vision_feature_layer: index of the backbone's feature map; the configuration's if None.
            vision_feature_select_strategy: ``default`` (without CLS) or ``full``; the configuration's if None.
            image_sizes: must be None, since all images have the same size.
            return_dict: False for a tuple, on transformers 5.
            kwargs: arguments of the vision backbone: ``output_hidden_states``, ``output_attentions``.

        Returns:
            On transformers 5, a ``BaseModelOutputWithPooling``: ``pooler_output`` has ``n_images`` tensors of shape
            (n_image_tokens, d_model), ``last_hidden_state`` the feature map with CLS, and ``hidden_states`` and
            ``attentions`` are the backbone's. On transformers 4, only the list of tensors, as for its LLaVA.

        Raises:
            PromptError: the feature map or strategy does not exist.
        """
        if image_sizes is not None:
            raise PromptError("MAIRA-2 takes images of one size only; leave image_sizes out.")
        layer = self.config.vision_feature_layer if vision_feature_layer is None else vision_feature_layer
        strategy = vision_feature_select_strategy or self.config.vision_feature_select_strategy
        if strategy not in ("default", "full"):
            raise PromptError(f"vision_feature_select_strategy is {strategy!r}; expected 'default' or 'full'.")
        outputs = self.vision_tower(pixel_values, **kwargs)
        maps = outputs.feature_maps
        if not isinstance(layer, int) or not -len(maps) <= layer < len(maps):
            raise PromptError(
                f"vision_feature_layer is {layer!r}, but the vision backbone gives {len(maps)} feature maps "
                f"({', '.join(self.vision_tower.out_features)}); expected the index of one of them."
            )
        features = maps[layer]
        kept = features[:, 1:] if strategy == "default" else features  # the first token is CLS
        embeddings: Any = list(self.multi_modal_projector(kept))
        if not TRANSFORMERS_5:
            return embeddings
        found = BaseModelOutputWithPooling(
            last_hidden_state=features,
            pooler_output=embeddings,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return found.to_tuple() if return_dict is False else found


class Maira2ForConditionalGeneration(LlavaForConditionalGeneration):
    """MAIRA-2 with its language modeling head.

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

    @overload
    @classmethod
    def from_pretrained(  # pyright: ignore[reportOverlappingOverload]
        cls, pretrained_model_name_or_path: Any, *args: Any, output_loading_info: Literal[True], **kwargs: Any
    ) -> tuple[Self, dict[str, Any]]: ...
    @overload
    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Self: ...
    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint with the given ``dtype`` and ``device_map``.

        Args:
            pretrained_model_name_or_path: a folder or a Hub id, ``microsoft/maira-2`` for the official model.
            kwargs: as for any transformers model: ``dtype``, ``device_map``, ``revision``, ``token``, ...

        Raises:
            CheckpointError: it is not a MAIRA-2 checkpoint, files or keys are missing or left over, or there is no
                access to a gated repository.
        """
        kwargs.pop("trust_remote_code", None)
        wants_info = kwargs.pop("output_loading_info", False)
        folder = Path(str(pretrained_model_name_or_path)).expanduser()
        if folder.is_dir():
            check_folder(folder / kwargs.get("subfolder", ""))
        # Mismatched shapes pass here and are refused below, together with all other problems.
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

    if TYPE_CHECKING:
        # transformers annotates a protocol that no model satisfies.
        def generate(self, *args: Any, **kwargs: Any) -> Any: ...

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Any = None,
        pixel_values: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Any = None,
        vision_feature_layer: int | None = None,
        vision_feature_select_strategy: str | None = None,
        labels: Any = None,
        logits_to_keep: Any = 0,
        token_kinds: Any = None,
        mm_encoder_outputs: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Compute logits, and the loss when ``labels`` are given.

        Args:
            input_ids: (batch, sequence) token ids with ``n_image_tokens`` placeholders per image.
            pixel_values: (n_images, 3, height, width), the images of all rows, in the order of their placeholders.
            attention_mask: (batch, sequence), 0 at padding.
            position_ids: as for Llama.
            past_key_values: as for Llama.
            inputs_embeds: (batch, sequence, d_model), instead of ``input_ids``.
            vision_feature_layer: index of the backbone's feature map; the configuration's if None.
            vision_feature_select_strategy: ``default`` or ``full``; the configuration's if None. ``full`` needs one
                more placeholder per image.
            labels: (batch, sequence), -100 where no loss is wanted.
            logits_to_keep: how many of the last positions get logits, or which ones; 0 means all.
            token_kinds: ignored; accepted so that a processor's whole output can be passed on.
            mm_encoder_outputs: embedded images instead of ``pixel_values``, as transformers 5 passes them while
                generating: ``{"image": get_image_features(pixel_values)}``.
            kwargs: as for ``LlavaForConditionalGeneration``: ``use_cache``, ``output_hidden_states``, ...

        Raises:
            PromptError: the input, or a cache of fixed size, is longer than the model's positions.
        """
        check_length(self.config, inputs_embeds if input_ids is None else input_ids, past_key_values)
        if mm_encoder_outputs:
            kwargs["mm_encoder_outputs"] = mm_encoder_outputs
        return super().forward(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            vision_feature_layer=vision_feature_layer,
            vision_feature_select_strategy=vision_feature_select_strategy,
            labels=labels,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    def _expand_inputs_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **model_kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Repeat each row ``expand_size`` times, together with its images, which may be pixels or embeddings."""
        pixel_values, embedded = model_kwargs.pop("pixel_values", None), model_kwargs.pop("mm_encoder_outputs", None)
        images = (embedded or {}).get("image")
        found = pixel_values if images is None else images.pooler_output
        if found is not None and expand_size > 1:
            embeddings = self.get_input_embeddings().weight
            n_images = images_per_row(self.config, input_ids, model_kwargs.get("inputs_embeds"), embeddings)
            order = repeated_order(n_images, len(found), expand_size)
            if images is None:
                pixel_values = pixel_values[order]
            else:
                pooler_output: Any = [found[index] for index in order]
                embedded = {"image": BaseModelOutputWithPooling(pooler_output=pooler_output)}
        expand: Any = super()
        input_ids, model_kwargs = expand._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        if pixel_values is not None:
            model_kwargs["pixel_values"] = pixel_values
        if embedded is not None:
            model_kwargs["mm_encoder_outputs"] = embedded
        return input_ids, model_kwargs


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
