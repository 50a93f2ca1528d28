"""Erases patches of one image and reads features again: in the image's pixels, or in its embeddings.

What is erased becomes what an average image has there: the mean over many studies, of pixels or of embeddings. So an
erased patch is as ordinary as possible, where black or gray would be something new to see.

The two answer different questions. Erased pixels ask what in the *image* a feature depends on. Erased embeddings ask
where the language model *gets* it from: a vision transformer spreads what it sees, so that the embedding of one patch
knows about the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_maira.attribution.reading import FeatureReader
from sae_lens_maira.data.study import Study, View
from sae_lens_maira.errors import AttributionError
from sae_lens_maira.hooked.embedded import EmbeddedPrompt, embed_images, read_last
from sae_lens_maira.vlm import VisionLanguageModel

Domain = Literal["pixels", "embeddings"]
_ROWS_AT_ONCE = 32


@dataclass(frozen=True)
class OneImage:
    """One image as the model sees it.

    Args:
        pixels: after preprocessing.
        embeddings: of its patches.
    """

    pixels: Float[Tensor, "channels height width"]
    embeddings: Float[Tensor, "n_patches d_model"]

    @property
    def side(self) -> int:
        """Patches per row.

        Raises:
            AttributionError: they form no square.
        """
        side = round(len(self.embeddings) ** 0.5)
        if side * side != len(self.embeddings):
            raise AttributionError(f"An image has {len(self.embeddings)} tokens, which form no square; maps need one.")
        return side


def single_view(study: Study, view: View) -> Study:
    """A study that has nothing but one of another study's images, as its frontal image."""
    return Study(study.study_id, study.patient_id, study.images[view])


def load_image(vlm: VisionLanguageModel, study: Study, view: View) -> OneImage:
    """Open and embed one image of a study."""
    alone = single_view(study, view)
    inputs = vlm.processor.images(alone)
    (pixels,) = _only_pixels(inputs)
    (embedded,) = embed_images(vlm, [alone], [inputs])
    return OneImage(pixels.to(vlm.module.device), embedded["frontal"])


def embed_pixels(
    vlm: VisionLanguageModel, pixels: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch n_patches d_model"]:
    """Embed versions of an image, with gradients if the pixels want them."""
    stand_in = _StandIn()
    studies = [Study(str(number), str(number), stand_in) for number in range(len(pixels))]
    inputs = [{"pixel_values": one[None]} for one in pixels]
    return torch.stack([images["frontal"] for images in embed_images(vlm, studies, inputs)])


def mean_images(vlm: VisionLanguageModel, studies: Iterable[Study]) -> dict[View, OneImage]:
    """The mean pixels and the mean embeddings of each view over studies."""
    found: dict[View, list[OneImage]] = {}
    for study in studies:
        for view in study.images:
            found.setdefault(view, []).append(load_image(vlm, study, view))
    return {
        view: OneImage(
            torch.stack([image.pixels for image in images]).mean(dim=0),
            torch.stack([image.embeddings for image in images]).mean(dim=0),
        )
        for view, images in found.items()
    }


@dataclass(frozen=True)
class Target:
    """Some features at one token of one study, as a function of one of its images.

    Args:
        reader: reads the features.
        prompt: the study's prompt; tokens after ``position`` are not run.
        position: the token at which the features are read.
        image_positions: positions of the image's tokens.
        image: the image.
        average: the mean image, which it is compared with.
        features: the features.
    """

    reader: FeatureReader
    prompt: EmbeddedPrompt
    position: int
    image_positions: Int[Tensor, " n_patches"]
    image: OneImage
    average: OneImage
    features: tuple[int, ...]

    def values(self, embeddings: Float[Tensor, "batch n_patches d_model"]) -> Float[Tensor, "batch n_features"]:
        """The features' pre-activations for other embeddings of the image."""
        tokens = self.prompt.embeddings[: self.position + 1].detach().expand(len(embeddings), -1, -1)
        rows = torch.arange(len(embeddings), device=tokens.device)[:, None]
        tokens = tokens.index_put((rows, self.image_positions.expand(len(embeddings), -1)), embeddings)
        hidden = read_last(self.reader.vlm, self.reader.place, tokens)
        return self.reader.pre_activations(hidden, self.features)

    @torch.no_grad()
    def values_without(
        self, masks: Bool[Tensor, "n_masks n_patches"], domain: Domain
    ) -> Float[Tensor, "n_masks n_features"]:
        """The features' pre-activations when the patches of each mask are erased."""
        found = []
        for chunk in masks.to(self.image.pixels.device).split(_ROWS_AT_ONCE):
            if domain == "embeddings":
                embeddings = torch.where(chunk[..., None], self.average.embeddings, self.image.embeddings)
            else:
                area = pixel_masks(chunk, self.image)
                embeddings = embed_pixels(self.reader.vlm, torch.where(area, self.average.pixels, self.image.pixels))
            found.append(self.values(embeddings))
        return torch.cat(found)


def pixel_masks(masks: Bool[Tensor, "n_masks n_patches"], image: OneImage) -> Bool[Tensor, "n_masks 1 height width"]:
    """Masks of patches as masks of pixels."""
    side = image.side
    height, width = (size // side for size in image.pixels.shape[1:])
    grid = masks.view(len(masks), 1, side, side)
    return grid.repeat_interleave(height, dim=2).repeat_interleave(width, dim=3)


class _StandIn:
    """An image that is never opened, since its pixels are given."""

    def open(self) -> Any:
        raise AssertionError("its pixels are given")


def _only_pixels(inputs: Mapping[str, Tensor]) -> Tensor:
    if list(inputs) != ["pixel_values"] or inputs["pixel_values"].ndim != 4:
        raise AttributionError(f"Maps need image inputs of pixels alone, and these are {', '.join(inputs)}.")
    return inputs["pixel_values"]
