"""MAIRA-2's processor: prompts in, model inputs out, model output back to text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Int
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerFast
from transformers.processing_utils import MultiModalData, ProcessorMixin

from sae_lens_maira.data.study import TokenKind
from sae_lens_maira.errors import PromptError
from sae_lens_maira.maira2.checkpoint import check_processor_folder, clear_loading_errors
from sae_lens_maira.maira2.configuration import TRANSFORMERS_5
from sae_lens_maira.maira2.grounding import GroundedReport, parse_grounded
from sae_lens_maira.maira2.images import ImageLike, fit_to_crop, to_stretched_gray
from sae_lens_maira.maira2.padding import Padding, PaddingSide, pad_rows, pad_texts, padded_width
from sae_lens_maira.maira2.plain_text import match_images, refuse_what_cannot_be_given
from sae_lens_maira.maira2.processor_files import (
    TOKENIZER_CLASS,
    tokenizer_class_is_meant,
    upload_files,
    write_processor,
)
from sae_lens_maira.maira2.prompts import ImageSlot, Prompt, as_batch
from sae_lens_maira.maira2.tokenization import RenderedPrompt, render_prompt, token_kinds

if TYPE_CHECKING:
    from typing_extensions import Self

if TRANSFORMERS_5:
    # Its ``BitImageProcessor`` needs torchvision, whose resampling differs from PIL's in the last digits.
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil as BitImageProcessor
else:
    from transformers import BitImageProcessor


class Maira2Processor(ProcessorMixin):
    """Turns prompts into token ids, token kinds and pixel values.

    Args:
        image_processor: transformers' ``BitImageProcessor`` with the checkpoint's sizes.
        tokenizer: the checkpoint's ``tokenizer.json``, as it is.
        patch_size: the vision backbone's patch size, in pixels.
        vision_feature_select_strategy: ``default`` drops the CLS token from the image features, ``full`` keeps it.
        chat_template: the checkpoint's; the tokenizer's if None.
        image_token: the placeholder's text.
        num_additional_image_tokens: tokens of the vision backbone in addition to the patches: CLS.
        phrase_start_token, phrase_end_token, box_start_token, box_end_token, num_box_coord_bins: the checkpoint's
            record of the grammar that :mod:`~sae_lens_maira.maira2.grounding` reads; kept for saving.
    """

    attributes = ["image_processor", "tokenizer"]  # noqa: RUF012 (transformers reads a plain list)
    image_processor_class = "BitImageProcessor"
    tokenizer_class = TOKENIZER_CLASS

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
        """Placeholder tokens per image."""
        crop: Any = self.image_processor.crop_size
        n_patches = (crop["height"] // self.patch_size) * (crop["width"] // self.patch_size)
        return n_patches + (self.vision_feature_select_strategy == "full")

    @property
    def model_input_names(self) -> list[str]:
        """Names of the model inputs that the processor makes."""
        return ["input_ids", "attention_mask", "token_kinds", "pixel_values"]

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        prompts: Prompt | Sequence[Prompt] | None = None,
        padding_side: PaddingSide | None = None,
        *,
        text: str | Sequence[str] | None = None,
        images: ImageLike | Sequence[Any] | None = None,
        videos: None = None,
        audio: None = None,
        padding: Padding = True,
        max_length: int | None = None,
        truncation: bool | str | None = False,
        add_special_tokens: bool = True,
        return_tensors: Literal["pt"] | None = "pt",
    ) -> BatchFeature:
        """Make model inputs of one prompt or a batch, or of plain texts with image placeholders.

        Args:
            prompts: what to ask.
            padding_side: the side to pad; by default left, for generation, or right if every prompt has an assistant
                text.
            text: instead of prompts: one text or several, each with a placeholder per image.
            images: the texts' images in the order of their placeholders, as a flat list or one list per text.
            videos, audio: must be None; transformers' chats pass them.
            padding: as for transformers' tokenizers: to the longest prompt, to ``max_length``, or none at all.
            max_length: the longest prompt that is allowed, in tokens.
            truncation: must be False, because a truncated prompt is not a MAIRA-2 prompt.
            add_special_tokens: start texts with the begin-of-sequence token, as prompts always do.
            return_tensors: ``pt``, for PyTorch.

        Returns:
            ``input_ids``, ``attention_mask`` and, for prompts, ``token_kinds`` (:class:`TokenKind` values), each of
            shape (batch, sequence), and ``pixel_values`` of shape (n_images, 3, height, width): the images of all
            prompts, in the order of their placeholders. Texts without images have no ``pixel_values``.

        Raises:
            ImageError: an image cannot be used.
            PromptError: there is no prompt, a text contains a special token, texts and images do not fit together, or
                an argument is not supported.
        """
        refuse_what_cannot_be_given(videos, audio, truncation, return_tensors)
        if (prompts is None) == (text is None):
            raise PromptError("Give either prompts, or text= with its images=.")
        if text is None:
            if images is not None or not add_special_tokens:
                raise PromptError("images= and add_special_tokens= belong to text=; a prompt holds its own images.")
            return self._inputs_of_prompts(as_batch(prompts), padding_side, padding, max_length)
        texts = [text] if isinstance(text, str) else list(text)
        found = match_images(texts, images, self.image_token)
        expanded = [text.replace(self.image_token, self.image_token * self.n_image_tokens) for text in texts]
        ids = self.tokenizer(expanded, add_special_tokens=add_special_tokens)["input_ids"]
        width = padded_width([len(row) for row in ids], padding, max_length)
        inputs = pad_texts(ids, self.tokenizer.pad_token_id, padding_side or "left", width)
        if found:
            inputs["pixel_values"] = self._pixels([(image, f"image {i}") for i, image in enumerate(found)])
        return BatchFeature(inputs)

    def _inputs_of_prompts(
        self, batch: list[Prompt], padding_side: PaddingSide | None, padding: Padding, max_length: int | None
    ) -> BatchFeature:
        encoded = [self.encode(prompt) for prompt in batch]
        if padding_side is None:
            padding_side = "right" if all(prompt.assistant_text is not None for prompt in batch) else "left"
        width = padded_width([len(ids) for ids, _ in encoded], padding, max_length)
        ids = pad_rows([ids for ids, _ in encoded], self.tokenizer.pad_token_id, padding_side, width)
        kinds = pad_rows([kinds for _, kinds in encoded], TokenKind.PAD, padding_side, width)
        return BatchFeature(
            {
                "input_ids": ids,
                "attention_mask": (kinds != TokenKind.PAD).long(),
                "token_kinds": kinds,
                "pixel_values": self.pixel_values(batch),
            }
        )

    def render(self, prompt: Prompt) -> RenderedPrompt:
        """The prompt as one string, with one placeholder per image, and the kind of each character."""
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
        return self._pixels([(slot.image, slot.name) for slot in slots])

    def _pixels(self, images: Sequence[tuple[ImageLike, str]]) -> Tensor:
        """Pixel values of images and their names."""
        fitted = [fit_to_crop(to_stretched_gray(image, name), self.image_processor) for image, name in images]
        return self.image_processor(fitted, return_tensors="pt")["pixel_values"]

    def _get_num_multimodal_tokens(self, image_sizes: Sequence[Sequence[int]] | None = None) -> MultiModalData:
        """Placeholder tokens of images of these sizes, as vLLM asks for them.

        Args:
            image_sizes: height and width of each image; all have the same number of tokens.
        """
        if image_sizes is None:
            return MultiModalData()
        n_images = len(image_sizes)
        return MultiModalData(num_image_tokens=[self.n_image_tokens] * n_images, num_image_patches=[1] * n_images)

    def decode_reports(self, output_ids: Int[Tensor, "batch n_tokens"], input_ids: Tensor | None = None) -> list[str]:
        """Text of generated answers, without special tokens and without the leading space of every answer.

        Args:
            output_ids: what ``generate`` returned.
            input_ids: the prompts, which are cut off; None if ``output_ids`` holds answers only.
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
        self, save_directory: str | Path, push_to_hub: bool = False, **hub_options: Any
    ) -> list[str]:
        """Write the processor in the official layout, which both transformers 4 and 5 read.

        Args:
            save_directory: the folder, created if missing.
            push_to_hub: upload the written files to the Hub as well.
            hub_options: arguments of :func:`~.processor_files.upload_files`, allowed only with ``push_to_hub``.

        Returns:
            The paths of the files.

        Raises:
            PromptError: there are options for the Hub without ``push_to_hub``.
        """
        if hub_options and not push_to_hub:
            raise PromptError(f"{', '.join(hub_options)} can only be given with push_to_hub=True.")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        names = write_processor(self, folder)
        if push_to_hub:
            upload_files(folder, names, **hub_options)
        return [str(folder / name) for name in names]

    def push_to_hub(self, repo_id: str, **hub_options: Any) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Upload the processor's files to a repository, and return its full name.

        Args:
            repo_id: the repository.
            hub_options: arguments of :func:`~.processor_files.upload_files`.
        """
        with TemporaryDirectory() as folder:
            names = write_processor(self, Path(folder))
            return upload_files(Path(folder), names, repo_id=repo_id, **hub_options)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Self:
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
        with tokenizer_class_is_meant():
            tokenizer = PreTrainedTokenizerFast.from_pretrained(pretrained_model_name_or_path, **kwargs)
        return [BitImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs), tokenizer]
