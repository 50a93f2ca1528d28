"""Where in an image a feature looks: maps on the grid of the image's patches.

A map has one number per patch, and is positive where the image raises the feature. All maps compare the image x with
the same baseline b, the mean image over many studies. So they show what is special about this image, not what every
image has in that place.

In the embeddings that the language model reads:

- ``gradient``: the gradient at x times (x - b), summed over the embedding's coordinates.
- ``integrated_gradients``: the mean gradient at points between b and x, times (x - b) (Sundararajan et al. 2017, arXiv
  1703.01365, equation 1). It sums to the difference between the feature's values for x and b.
- ``relp``: as ``gradient``, with the backward rules of :mod:`sae_lens_maira.attribution.relevance`.
- ``occlusion``: how much the feature falls when one patch becomes b's; the exact counterpart of the three above.

In the image's pixels, through the vision tower:

- ``pixel_gradients``: integrated gradients from the mean image to the image, summed over each patch's pixels.
- ``pixel_occlusion``: how much the feature falls when one patch's pixels become those of the mean image.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sae_lens_maira.attribution.erasing import Domain, Target, embed_pixels
from sae_lens_maira.attribution.relevance import relevance_rules

MapMethod = Literal["gradient", "integrated_gradients", "relp", "occlusion", "pixel_gradients", "pixel_occlusion"]
METHODS: tuple[MapMethod, ...] = get_args(MapMethod)
DOMAIN: dict[MapMethod, Domain] = {
    method: "pixels" if method.startswith("pixel") else "embeddings" for method in METHODS
}
EXACT: dict[Domain, MapMethod] = {"embeddings": "occlusion", "pixels": "pixel_occlusion"}
"""The method that patches exactly, for each domain; the others estimate it."""
N_STEPS = 16
"""Points between baseline and image for integrated gradients."""
_FEATURES_AT_ONCE = 64


def make_map(target: Target, method: MapMethod) -> Float[Tensor, "n_features n_patches"]:
    """The map of every feature of a target."""
    if method in ("occlusion", "pixel_occlusion"):
        return _occlusion_map(target, DOMAIN[method])
    if method == "pixel_gradients":
        return _pixel_gradients(target)
    return _embedding_gradients(target, method)


def _occlusion_map(target: Target, domain: Domain) -> Tensor:
    masks = torch.eye(len(target.image.embeddings), dtype=torch.bool)
    values = target.values_without(torch.cat([torch.zeros_like(masks[:1]), masks]), domain)
    return (values[:1] - values[1:]).T


def _embedding_gradients(target: Target, method: MapMethod) -> Tensor:
    baseline, image = target.average.embeddings, target.image.embeddings
    n_steps = N_STEPS if method == "integrated_gradients" else 1
    points = _between(baseline, image, n_steps) if n_steps > 1 else image[None].detach().clone().requires_grad_()
    layers = target.reader.vlm.layers(target.reader.vlm.module)[: target.reader.place.layer + 1]
    with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():  # other kernels have no batched backward pass
        if method == "relp":
            with relevance_rules(layers):
                values = target.values(points)
        else:
            values = target.values(points)
        gradients = mean_gradients(values, points)
    return (gradients * (image - baseline)).sum(dim=-1)


def _pixel_gradients(target: Target) -> Tensor:
    baseline, image = target.average.pixels, target.image.pixels
    points = _between(baseline, image, N_STEPS)
    with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        gradients = mean_gradients(target.values(embed_pixels(target.reader.vlm, points)), points)
    side = target.image.side
    relevance = (gradients * (image - baseline)).sum(dim=1)
    height, width = (size // side for size in relevance.shape[1:])
    return relevance.view(-1, side, height, side, width).sum(dim=(2, 4)).flatten(1)


def mean_gradients(
    values: Float[Tensor, "n_points n_features"], points: Float[Tensor, "*shape"]
) -> Float[Tensor, "*map_shape"]:
    """Each feature's gradient with respect to the points, averaged over them: one batched backward pass."""
    sums = values.sum(dim=0)
    chosen = torch.eye(len(sums), dtype=sums.dtype, device=sums.device).split(_FEATURES_AT_ONCE)
    parts = [
        torch.autograd.grad(sums, points, part, retain_graph=True, is_grads_batched=True)[0].mean(dim=1)
        for part in chosen
    ]
    return torch.cat(parts).detach()


def _between(baseline: Tensor, image: Tensor, n_steps: int) -> Tensor:
    """Midpoints of equal steps from the baseline to the image."""
    steps = (torch.arange(n_steps, device=image.device) + 0.5) / n_steps
    steps = steps.to(image.dtype).view(-1, *[1] * image.ndim)
    return (baseline + steps * (image - baseline)).detach().requires_grad_()
