"""The training pool: studies drawn once and kept in a few arrays, with all targets of the losses.

Drawing a study takes longer than training on it, so two processes draw the pool before training starts. Reports are not
in the pool: a study is worded again each time it is used, so that no wording is learned by heart.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from tqdm import tqdm

from sae_lens_maira.data.study import Box
from sae_lens_maira.maira2.images import to_stretched_gray
from sae_lens_maira.phantom.generate import IMAGE_SIZE, Recipe, sample_recipe
from sae_lens_maira.phantom.words.grammar import stem
from sae_lens_maira.phantom.world import scene
from sae_lens_maira.phantom.world.concepts import CONCEPTS, VISIBLE, State
from sae_lens_maira.phantom.world.film import Shot
from sae_lens_maira.phantom.world.scene import PhantomImage

MAX_PARTS = 2
"""The largest number of boxes that one concept has."""
UNRELATED_EVERY = 5
"""Every n-th study has concepts that ignore its clinical context."""
LATERAL_STEMS: tuple[str, ...] = tuple(
    dict.fromkeys(stem(name, CONCEPTS[name].side) for name in VISIBLE if not name.startswith(("pneumothorax", "rib")))
)
"""Concepts, without their side, that a lateral view shows."""


class PooledStudy(NamedTuple):
    """A study of the pool: its recipe, the boxes of its frontal image, and the array row of each of its images."""

    recipe: Recipe
    boxes: dict[str, tuple[Box, ...]]
    frontal: int
    lateral: int | None
    prior_frontal: int | None

    @property
    def images(self) -> list[int]:
        """Rows of the images that the study has, in the order of a prompt."""
        return [row for row in (self.frontal, self.lateral, self.prior_frontal) if row is not None]


@dataclass(frozen=True)
class Pool:
    """Studies and their images."""

    studies: list[PooledStudy]
    pixels: UInt8[np.ndarray, "n_images size size"]
    """As the processor stretches them."""
    is_lateral: Bool[np.ndarray, " n_images"]
    appearance: Float32[np.ndarray, "n_images n_concepts 3"]
    """Whether each concept is present, large, subtle: 0 or 1."""
    boxes: Float32[np.ndarray, "n_images n_concepts n_parts 4"]
    """``MAX_PARTS`` boxes per concept, zero where there is none; lateral images have none."""
    lateral: Float32[np.ndarray, "n_images n_stems"]
    """Whether a lateral image shows each of ``LATERAL_STEMS``: 0 or 1."""


def stretched_pixels(image: PhantomImage) -> UInt8[np.ndarray, "size size"]:
    """The image after the processor's stretch to the full range of gray levels."""
    return np.asarray(to_stretched_gray(image.open()))


class _Drawn(NamedTuple):
    """One image of the pool with its targets, as a worker returns it."""

    pixels: UInt8[np.ndarray, "size size"]
    is_lateral: bool
    state: State
    boxes: dict[str, tuple[Box, ...]]


def _draw_study(index: int, seed: int) -> tuple[Recipe, list[_Drawn]]:
    """One study: its frontal, then its lateral and prior image if it has them, with the shots of ``generate.build``."""
    unrelated = index % UNRELATED_EVERY == 0
    recipe = sample_recipe(np.random.default_rng([seed, index]), size=IMAGE_SIZE, unrelated=unrelated)
    shots = [Shot.sample(np.random.default_rng([recipe.seed, k])) for k in range(3)]
    views = [PhantomImage(recipe.anatomy_seed, recipe.state, shots[0])]
    if recipe.lateral:
        views.append(replace(views[0], shot=shots[1], view="lateral"))
    if recipe.prior is not None:
        views.append(replace(views[0], shot=shots[2], state=recipe.prior))
    drawn = []
    for image in views:
        lateral = image.view == "lateral"
        drawn.append(_Drawn(stretched_pixels(image), lateral, image.state, {} if lateral else scene.boxes(image)))
    return recipe, drawn


def draw_pool(n_studies: int, seed: int, *, n_workers: int = 2) -> Pool:
    """Draw ``n_studies`` studies; the result does not depend on ``n_workers``."""
    drawn = list(_draw_all(n_studies, seed, n_workers))
    images = [image for _, own in drawn for image in own]
    studies, row = [], 0
    for recipe, own in drawn:
        lateral = row + 1 if recipe.lateral else None
        prior = row + len(own) - 1 if recipe.prior is not None else None
        studies.append(PooledStudy(recipe, own[0].boxes, row, lateral, prior))
        row += len(own)
    appearance = np.zeros((len(images), len(VISIBLE), 3), np.float32)
    boxes = np.zeros((len(images), len(VISIBLE), MAX_PARTS, 4), np.float32)
    lateral = np.zeros((len(images), len(LATERAL_STEMS)), np.float32)
    for i, image in enumerate(images):
        for name, look in image.state.items():
            k = VISIBLE.index(name)
            appearance[i, k] = (1.0, float(look.extent == 2), float(look.subtle))
            for part, box in enumerate(image.boxes.get(name, ())):
                boxes[i, k, part] = box
            shown = stem(name, CONCEPTS[name].side)
            if image.is_lateral and shown in LATERAL_STEMS:
                lateral[i, LATERAL_STEMS.index(shown)] = 1.0
    return Pool(
        studies,
        np.stack([image.pixels for image in images]),
        np.array([image.is_lateral for image in images]),
        appearance,
        boxes,
        lateral,
    )


def _draw_all(n_studies: int, seed: int, n_workers: int) -> Iterator[tuple[Recipe, list[_Drawn]]]:
    draw = partial(_draw_study, seed=seed)
    if n_workers <= 1:
        yield from tqdm(map(draw, range(n_studies)), total=n_studies, desc="draw studies")
        return
    with ProcessPoolExecutor(n_workers) as executor:
        yield from tqdm(executor.map(draw, range(n_studies), chunksize=64), total=n_studies, desc="draw studies")
