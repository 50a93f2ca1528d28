"""Where in an image a feature looks: maps on the grid of the image's patches.

A map has one number per image token, and is positive where the image raises the feature. All maps compare the image's
embeddings E with the same baseline B: the mean embedding of each patch over many studies. So a map measures what is
special about this image rather than what every image has there.

- ``gradient``: the gradient times (E - B), summed over the embedding's coordinates; one linear step.
- ``integrated_gradients``: the mean gradient at points between B and E, times (E - B) (Sundararajan et al. 2017, arXiv
  1703.01365, equation 1). The map sums to the difference between the feature's values for E and for B.
- ``relp``: relevance propagation, see :mod:`sae_lens_maira.attribution.relevance`.
- ``occlusion``: how much the feature falls when one patch's embedding becomes B's. ``occlusion_3x3`` does this with a
  window of three patches by three, and gives each patch the mean over the windows that cover it.
- ``pixels``: how much the feature falls when a patch's pixels become the mean gray of its surroundings and the image
  is embedded again. It is slower, since the vision tower runs once per patch, and it is the only one that asks about
  the image itself: an embedding of a vision transformer also knows about the other patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sae_lens_maira.attribution.reading import FeatureReader
from sae_lens_maira.attribution.relevance import relevance_rules
from sae_lens_maira.data.study import Study, View
from sae_lens_maira.errors import AttributionError
from sae_lens_maira.hooked.embedded import EmbeddedPrompt, embed_images, read_site

MapMethod = Literal["gradient", "integrated_gradients", "relp", "occlusion", "occlusion_3x3", "pixels"]
METHODS: tuple[MapMethod, ...] = get_args(MapMethod)
N_STEPS = 10
"""Points between baseline and image for integrated gradients."""
_FEATURES_AT_ONCE = 64
_ROWS_AT_ONCE = 32


@dataclass(frozen=True)
class MapTarget:
    """Some features at one token of one study, as a function of one image's embeddings.

    Args:
        reader: reads the features.
        prompt: the study's prompt; tokens after ``position`` are not run.
        position: the token at which the features are read.
        image_positions: positions of the image's tokens.
        image: the image's embeddings.
        baseline: what they are compared with.
        features: the features.
    """

    reader: FeatureReader
    prompt: EmbeddedPrompt
    position: int
    image_positions: Int[Tensor, " n_image_tokens"]
    image: Float[Tensor, "n_image_tokens d_model"]
    baseline: Float[Tensor, "n_image_tokens d_model"]
    features: tuple[int, ...]

    def values(self, images: Float[Tensor, "batch n_image_tokens d_model"]) -> Float[Tensor, "batch n_features"]:
        """The features' pre-activations for other embeddings of the image."""
        tokens = self.prompt.embeddings[: self.position + 1].detach().expand(len(images), -1, -1)
        rows = torch.arange(len(images), device=tokens.device)[:, None]
        tokens = tokens.index_put((rows, self.image_positions.expand(len(images), -1)), images)
        hidden = read_site(self.reader.vlm, self.reader.place, tokens)[:, -1]
        return self.reader.pre_activations(hidden, self.features)

    @torch.no_grad()
    def values_without(
        self, masks: Bool[Tensor, "n_masks n_image_tokens"]
    ) -> Float[Tensor, "n_masks n_features"]:
        """The features' values when the baseline replaces the image at the masks' patches."""
        chunks = masks.to(self.image.device).split(_ROWS_AT_ONCE)
        return torch.cat([self.values(torch.where(chunk[..., None], self.baseline, self.image)) for chunk in chunks])


def make_map(
    target: MapTarget, method: MapMethod, study: Study, view: View
) -> Float[Tensor, "n_features n_image_tokens"]:
    """The map of every feature of a target.

    Args:
        target: the features, the token and the image.
        method: see the module's docstring.
        study: whose image it is; opened by the method ``pixels`` alone.
        view: which of the study's images it is.
    """
    if method in ("gradient", "integrated_gradients", "relp"):
        return _gradient_map(target, method)
    if method == "pixels":
        return _pixel_map(target, study, view)
    return _occlusion_map(target, 1 if method == "occlusion" else 3)


def grid_side(n_image_tokens: int) -> int:
    """Patches per row of a square image.

    Raises:
        AttributionError: the tokens do not form a square.
    """
    side = round(n_image_tokens**0.5)
    if side * side != n_image_tokens:
        raise AttributionError(f"An image has {n_image_tokens} tokens, which form no square grid; maps need one.")
    return side


def windows(side: int, width: int) -> Bool[Tensor, "n_patches n_patches"]:
    """For every patch, the square window of an odd width around it, cut off at the image's edges."""
    index = torch.arange(side)
    near = (index[:, None] - index[None]).abs() <= width // 2
    return (near[:, None, :, None] & near[None, :, None, :]).reshape(side * side, side * side)


def _gradient_map(target: MapTarget, method: MapMethod) -> Tensor:
    layers = target.reader.vlm.layers(target.reader.vlm.module)[: target.reader.place.layer + 1]
    difference = target.image - target.baseline
    if method == "integrated_gradients":
        steps = (torch.arange(N_STEPS, device=difference.device) + 0.5) / N_STEPS
        points = target.baseline + steps[:, None, None].to(difference.dtype) * difference
    else:
        points = target.image[None]
    points = points.detach().requires_grad_()
    # Other kernels of attention have no batched backward pass.
    with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        if method == "relp":
            with relevance_rules(layers):
                values = target.values(points)
        else:
            values = target.values(points)
        sums = values.sum(dim=0)
        chosen = torch.eye(len(sums), dtype=sums.dtype, device=sums.device).split(_FEATURES_AT_ONCE)
        gradients = [
            torch.autograd.grad(sums, points, part, retain_graph=True, is_grads_batched=True)[0].mean(dim=1)
            for part in chosen
        ]
    return (torch.cat(gradients) * difference).sum(dim=-1).detach()


def _occlusion_map(target: MapTarget, width: int) -> Tensor:
    masks = windows(grid_side(len(target.image)), width)
    nothing = torch.zeros_like(masks[:1])
    values = target.values_without(torch.cat([nothing, masks]))
    falls = values[:1] - values[1:]
    cover = masks.to(falls)
    return (cover.T @ falls / cover.sum(dim=0)[:, None]).T


@torch.no_grad()
def _pixel_map(target: MapTarget, study: Study, view: View) -> Tensor:
    inputs = target.reader.vlm.processor.images(study)
    number = list(study.images).index(view)
    side = grid_side(len(target.image))
    full = target.values(target.image[None])
    falls = []
    for patches in torch.arange(side * side).split(_ROWS_AT_ONCE):
        changed = [_without_patch(inputs, number, int(patch), side) for patch in patches]
        embedded = embed_images(target.reader.vlm, [study] * len(changed), changed)
        falls.append(full - target.values(torch.stack([images[view] for images in embedded])))
    return torch.cat(falls).T


def _without_patch(inputs: dict[str, Tensor], number: int, patch: int, side: int) -> dict[str, Tensor]:
    """Image inputs in which one patch of one image has the mean gray of its surroundings."""
    (name, pixels), *others = inputs.items()
    if others or pixels.ndim != 4:
        raise AttributionError(f"The method pixels needs image inputs of pixels alone, not {', '.join(inputs)}.")
    height, width = pixels.shape[2] // side, pixels.shape[3] // side
    top, left = patch // side * height, patch % side * width
    image = pixels[number]
    around = image[:, max(top - height, 0) : top + 2 * height, max(left - width, 0) : left + 2 * width]
    changed = pixels.clone()
    changed[number, :, top : top + height, left : left + width] = around.mean(dim=(1, 2))[:, None, None]
    return {name: changed}
