"""MAIRA-2's processor: prompts in, model inputs out, model output back to text."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerFast
from transformers.processing_utils import ProcessorMixin

from sae_lens_maira.data.study import TokenKind
from sae_lens_maira.errors import PromptError
from sae_lens_maira.maira2.checkpoint import check_processor_folder, clear_loading_errors
from sae_lens_maira.maira2.configuration import TRANSFORMERS_5
from sae_lens_maira.maira2.grounding import GroundedReport, parse_grounded
from sae_lens_maira.maira2.images import to_stretched_grey
from sae_lens_maira.maira2.prompts import ImageSlot, Prompt
from sae_lens_maira.maira2.tokenization import RenderedPrompt, render_prompt, token_kinds

if TRANSFORMERS_5:
    # The plain name needs torchvision there, whose resampling differs from PIL's in the last digits.
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil as BitImageProcessor
else:
    from transformers import BitImageProcessor

PaddingSide = Literal["left", "right"]


class Maira2Processor(ProcessorMixin):
    """Turns prompts into token ids, token kinds and pixel values.

    Args:
        image_processor: transformers' ``BitImageProcessor`` with the checkpoint's sizes.
        tokenizer: the checkpoint's ``tokenizer.json``, as it is.
        patch_size: of the vision backbone, in pixels.
        vision_feature_select_strategy: ``default`` drops the CLS token from the image features, ``full`` keeps it.
        chat_template: the checkpoint's; None takes the tokenizer's.
        image_token: the placeholder's text.
        num_additional_image_tokens: tokens of the vision backbone beside the patches: CLS.
        phrase_start_token, phrase_end_token, box_start_token, box_end_token, num_box_coord_bins: the checkpoint's
            record of the grammar that :mod:`~sae_lens_maira.maira2.grounding` reads; kept for saving.
    """

    attributes = ["image_processor", "tokenizer"]  # noqa: RUF012 (transformers reads a plain list)
    image_processor_class = "BitImageProcessor"
    tokenizer_class = "PreTrainedTokenizerFast"

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int = 14,
        vision_feature_select_strategy: str = "default",
        chat_template: str | None = None,
        image_token: str = "<image>",
        num_additional_image_tokens: int = 1,
        phrase_start_token: str = "<obj>",
        phrase_end_token: str = "</obj>",
        box_start_token: str = "<box>",
        box_end_token: str = "</box>",
        num_box_coord_bins: int = 100,
        **_: Any,
    ) -> None:
        self.patch_size = patch_size
        self.vision_feature_select_strategy = vision_feature_select_strategy
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        self.saved_fields = {
            "patch_size": patch_size,
            "vision_feature_select_strategy": vision_feature_select_strategy,
            "image_token": image_token,
            "num_additional_image_tokens": num_additional_image_tokens,
            "phrase_start_token": phrase_start_token,
            "phrase_end_token": phrase_end_token,
            "box_start_token": box_start_token,
            "box_end_token": box_end_token,
            "num_box_coord_bins": num_box_coord_bins,
        }
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @property
    def n_image_tokens(self) -> int:
        """Placeholder tokens an image takes."""
        crop: Any = self.image_processor.crop_size
        n_patches = (crop["height"] // self.patch_size) * (crop["width"] // self.patch_size)
        return n_patches + (self.vision_feature_select_strategy == "full")

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, prompts: Prompt | Sequence[Prompt], padding_side: PaddingSide | None = None, **_: Any
    ) -> BatchFeature:
        """Make model inputs of one prompt or a batch.

        Args:
            prompts: what to ask.
            padding_side: where shorter prompts are filled up; by default left for generation, right when every
                prompt has an assistant text.

        Returns:
            ``input_ids``, ``attention_mask`` and ``token_kinds`` (:class:`TokenKind` values), each of shape
            (batch, sequence), and ``pixel_values`` of shape (n_images, 3, height, width): the images of all prompts,
            in the order of their placeholders.

        Raises:
            ImageError: an image cannot be used.
            PromptError: there is no prompt, or a text contains a special token.
        """
        batch = list(prompts) if isinstance(prompts, Sequence) else [prompts]
        if not batch:
            raise PromptError("There is no prompt; give at least one.")
        encoded = [self.encode(prompt) for prompt in batch]
        if padding_side is None:
            padding_side = "right" if all(prompt.assistant_text is not None for prompt in batch) else "left"
        ids = pad_rows([ids for ids, _ in encoded], self.tokenizer.pad_token_id, padding_side)
        kinds = pad_rows([kinds for _, kinds in encoded], TokenKind.PAD, padding_side)
        return BatchFeature(
            {
                "input_ids": ids,
                "attention_mask": (kinds != TokenKind.PAD).long(),
                "token_kinds": kinds,
                "pixel_values": self.pixel_values(batch),
            }
        )

    def render(self, prompt: Prompt) -> RenderedPrompt:
        """The prompt as one string, each image still one placeholder, and the kind of each character."""
        template: Any = self.chat_template
        return render_prompt(prompt, self.tokenizer, template, self.image_token)

    def encode(self, prompt: Prompt) -> tuple[Int[np.ndarray, " n_tokens"], Int[np.ndarray, " n_tokens"]]:
        """Token ids of one prompt and the kind of each; no image is opened."""
        rendered = self.render(prompt).expand_images(self.image_token, self.n_image_tokens)
        encoding = self.tokenizer(rendered.text, return_offsets_mapping=True)
        kinds = token_kinds(rendered.character_kinds, encoding["offset_mapping"])
        return np.array(encoding["input_ids"]), kinds

    def pixel_values(self, prompts: Sequence[Prompt]) -> Tensor:
        """Images of all prompts, in order, as (n_images, 3, height, width)."""
        slots = [piece for prompt in prompts for piece in prompt.pieces() if isinstance(piece, ImageSlot)]
        images = [to_stretched_grey(slot.image, slot.name) for slot in slots]
        return self.image_processor(images, return_tensors="pt")["pixel_values"]

    def decode_reports(self, output_ids: Int[Tensor, "batch n_tokens"], input_ids: Tensor | None = None) -> list[str]:
        """Text of generated answers, without special tokens and the space that every answer starts with.

        Args:
            output_ids: what ``generate`` returned.
            input_ids: the prompts it was given, which are cut off; None if ``output_ids`` holds answers only.
        """
        answers = output_ids if input_ids is None else output_ids[:, input_ids.shape[1] :]
        texts = self.tokenizer.batch_decode(answers, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [text.strip() for text in texts]

    def decode_grounded(
        self, output_ids: Int[Tensor, "batch n_tokens"], input_ids: Tensor | None = None
    ) -> list[GroundedReport]:
        """Generated grounded answers, read by :func:`parse_grounded`."""
        return [parse_grounded(text) for text in self.decode_reports(output_ids, input_ids)]

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, save_directory: str | Path, **_: Any
    ) -> list[str]:
        """Write the processor in the official layout, which both transformers 4 and 5 read."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        all_image_fields = self.image_processor.to_dict()
        image_fields = {name: all_image_fields[name] for name in all_image_fields if not name.startswith("_")}
        specials = {
            name: str(getattr(self.tokenizer, name))
            for name in ("bos_token", "eos_token", "pad_token", "unk_token")
            if getattr(self.tokenizer, name) is not None
        }
        class_fields = {"processor_class": type(self).__name__}
        files = {
            "preprocessor_config.json": {
                **image_fields,
                "image_processor_type": "BitImageProcessor",
                **class_fields,
            },
            "processor_config.json": {**self.saved_fields, **class_fields},
            "chat_template.json": {"chat_template": self.chat_template or self.tokenizer.chat_template},
            "tokenizer_config.json": {
                **specials,
                "additional_special_tokens": [self.image_token],
                "clean_up_tokenization_spaces": False,
                "tokenizer_class": self.tokenizer_class,
            },
            "special_tokens_map.json": {**specials, "additional_special_tokens": [self.image_token]},
        }
        for name, fields in files.items():
            (folder / name).write_text(json.dumps(fields, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        self.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
        return [str(folder / name) for name in (*files, "tokenizer.json")]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load the processor of a checkpoint: a folder or a Hub id.

        Raises:
            CheckpointError: no access, no such repository, or files are missing.
        """
        folder = Path(str(pretrained_model_name_or_path)).expanduser()
        if folder.is_dir():
            check_processor_folder(folder / kwargs.get("subfolder", ""))
        with clear_loading_errors(pretrained_model_name_or_path):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path: Any, *_: Any, **kwargs: Any) -> list[Any]:
        """Load both parts by their exact classes.

        The Auto classes would rebuild the tokenizer as transformers' own Llama one, which splits the text after
        an image differently from the checkpoint's ``tokenizer.json``.
        """
        kwargs.pop("trust_remote_code", None)
        with _tokenizer_class_is_meant():
            tokenizer = PreTrainedTokenizerFast.from_pretrained(pretrained_model_name_or_path, **kwargs)
        return [BitImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs), tokenizer]


def pad_rows(rows: list[np.ndarray], value: int, side: PaddingSide) -> Int[Tensor, "batch sequence"]:
    """Stack rows of different lengths, the shorter ones filled up with a value on one side."""
    width = max(len(row) for row in rows)
    padded = torch.full((len(rows), width), int(value), dtype=torch.long)
    for target, row in zip(padded, rows, strict=True):
        target[slice(0, len(row)) if side == "right" else slice(width - len(row), width)] = torch.from_numpy(row)
    return padded


@contextmanager
def _tokenizer_class_is_meant() -> Iterator[None]:
    """Keep transformers 4 from warning that the checkpoint names another tokenizer class."""
    logger = logging.getLogger("transformers.tokenization_utils_base")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was_disabled
