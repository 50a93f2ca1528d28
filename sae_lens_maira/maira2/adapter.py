"""MAIRA-2's adapter: its prompts for studies, and where its hook points are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from jaxtyping import Int
from torch import Tensor

from sae_lens_maira.data.study import Study
from sae_lens_maira.errors import RowError
from sae_lens_maira.files import to_json
from sae_lens_maira.maira2.modeling import Maira2ForConditionalGeneration
from sae_lens_maira.maira2.processing import Maira2Processor
from sae_lens_maira.maira2.prompts import MAX_NEW_TOKENS, FindingsPrompt
from sae_lens_maira.vlm import ModelSizes, PaddingSide, PromptText, RaggedTokenIds, TokenIds, pad_and_concatenate

_IMAGE_SETTINGS = ("size", "crop_size", "image_mean", "image_std", "resample", "rescale_factor", "do_center_crop")


def study_prompt(study: Study, text: PromptText = "findings", *, grounded: bool = False) -> FindingsPrompt:
    """The prompt that asks for a study's findings; its own report is the answer unless only the prompt is wanted.

    Raises:
        RowError: the study has a prior report and no prior image.
    """
    if study.prior_report is not None and study.prior_frontal is None:
        raise RowError(
            f"Study '{study.study_id}' has a prior report and no prior image, and MAIRA-2 reads them together; "
            "give the image, or leave the report out."
        )
    return FindingsPrompt(
        frontal=study.frontal,
        lateral=study.lateral,
        prior=study.prior_frontal,
        indication=study.indication,
        technique=study.technique,
        comparison=study.comparison,
        prior_report=study.prior_report,
        grounded=grounded,
        assistant_text=study.findings if text == "findings" else None,
    )


class Maira2StudyProcessor:
    """A :class:`~sae_lens_maira.vlm.StudyProcessor` of MAIRA-2.

    Args:
        processor: the checkpoint's processor.
    """

    def __init__(self, processor: Maira2Processor) -> None:
        self.maira2 = processor
        self.tokenizer: Any = processor.tokenizer
        self.n_image_tokens = processor.n_image_tokens
        self.max_new_tokens = MAX_NEW_TOKENS

    def encode(self, study: Study, text: PromptText) -> tuple[TokenIds, TokenIds]:
        """Token ids of a study's full prompt and the kind of each; no image is opened."""
        return self.maira2.encode(study_prompt(study, text))

    def images(self, study: Study) -> dict[str, Tensor]:
        """``pixel_values`` of shape (n_images, 3, height, width): frontal, lateral, prior."""
        return {"pixel_values": self.maira2.pixel_values([study_prompt(study, "prompt")])}

    def collate(
        self, ids: RaggedTokenIds, images: Sequence[Mapping[str, Tensor]], padding_side: PaddingSide
    ) -> dict[str, Tensor]:
        """Padded ids, their mask, and the images of all studies."""
        return pad_and_concatenate(ids, images, self.tokenizer.pad_token_id, padding_side)

    def decode(self, output_ids: Int[Tensor, "batch n_tokens"], input_ids: Int[Tensor, "batch n_prompt"]) -> list[str]:
        """Reports without special tokens."""
        return self.maira2.decode_reports(output_ids, input_ids)

    def fingerprint(self) -> str:
        """A hash of the tokenizer, the chat template and the image preprocessing."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        image_processor: Any = self.maira2.image_processor
        images = image_processor.to_dict()
        parts = {
            "tokenizer": self.tokenizer.backend_tokenizer.to_str(),
            "template": self.maira2.chat_template,
            "n_image_tokens": self.n_image_tokens,
            "images": {name: images.get(name) for name in _IMAGE_SETTINGS},
        }
        return hashlib.sha256(to_json(_plain(parts)).encode()).hexdigest()[:16]


class Maira2Adapter:
    """A :class:`~sae_lens_maira.vlm.VisionLanguageModel` of MAIRA-2.

    Args:
        model: the model, in any dtype, on any device or devices.
        processor: the checkpoint's processor.
    """

    family = "maira2"

    def __init__(self, model: Maira2ForConditionalGeneration, processor: Maira2Processor) -> None:
        self.module = model.eval()
        config: Any = model.config
        self.sizes = ModelSizes.of(config.text_config, config.n_positions)
        self.processor = Maira2StudyProcessor(processor)

    def layers(self, root: Any) -> Any:
        """The decoder layers."""
        return root.model.language_model.layers

    def image_embeddings(self, root: Any) -> Any:
        """The projector."""
        return root.model.multi_modal_projector

    def final_norm(self, root: Any) -> Any:
        """The language model's final norm."""
        return root.model.language_model.norm


def _plain(value: Any) -> Any:
    """Plain JSON values, from transformers 4's plain values or transformers 5's objects."""
    if isinstance(value, Mapping):
        return {str(key): _plain(value[key]) for key in value if value[key] is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "__dict__") and not isinstance(value, (int, float, str)):
        return _plain(vars(value))
    return int(value) if isinstance(value, int) else value
