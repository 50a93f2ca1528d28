"""The training pool: studies drawn once, with everything the losses want to know, kept in a few arrays.

Drawing takes longer than a training step, so the pool is drawn by two processes before training starts and read many
times; the words are composed anew each time a study is used, so no wording is learnt by heart.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from sae_lens_maira.data.study import Box
from sae_lens_maira.maira2.images import to_stretched_grey
from sae_lens_maira.phantom.generate import IMAGE_SIZE, Recipe, sample_recipe
from sae_lens_maira.phantom.words.grammar import stem
from sae_lens_maira.phantom.world import scene
from sae_lens_maira.phantom.world.concepts import CONCEPTS, VISIBLE, State
from sae_lens_maira.phantom.world.film import Shot
from sae_lens_maira.phantom.world.scene import PhantomImage

MAX_PARTS = 2
"""Most boxes that one concept has."""
UNRELATED_EVERY = 5
"""One study in so many has concepts that ignore its clinical context."""
LATERAL_STEMS: tuple[str, ...] = tuple(
    dict.fromkeys(stem(name, CONCEPTS[name].side) for name in VISIBLE if not name.startswith(("pneumothorax", "rib")))
)
"""What a lateral view shows: concepts without their side."""


class PooledStudy(NamedTuple):
    """A study as the pool keeps it: how it is made, where its boxes are, which rows of the arrays are its images."""

    recipe: Recipe
    boxes: dict[str, tuple[Box, ...]]
    frontal: int
    lateral: int | None
    prior: int | None


@dataclass(frozen=True)
class Pool:
    """Studies and their images.

    Shapes: `pixels` (n_images, size, size) as the processor stretches them; `is_lateral` (n_images,);
    `appearance` (n_images, n_concepts, 3) of present, large, subtle; `boxes` (n_images, n_concepts, MAX_PARTS, 4), zero
    where there is none (laterals have none); `lateral` (n_images, n_stems).
    """

    studies: list[PooledStudy]
    pixels: npt.NDArray[np.uint8]
    is_lateral: npt.NDArray[np.bool_]
    appearance: npt.NDArray[np.float32]
    boxes: npt.NDArray[np.float32]
    lateral: npt.NDArray[np.float32]


def stretched_pixels(image: PhantomImage) -> npt.NDArray[np.uint8]:
    """The image as the model's processor sees it after its stretch to the full range of grey."""
    return np.asarray(to_stretched_grey(image.open()))


class _Drawn(NamedTuple):
    """One image of the pool with its targets, as a worker hands it over."""

    pixels: npt.NDArray[np.uint8]
    is_lateral: bool
    state: State
    boxes: dict[str, tuple[Box, ...]]


def _draw_study(index: int, seed: int) -> tuple[Recipe, list[_Drawn]]:
    """Study `index`: frontal image, then lateral, then prior where it has them, with the shots of `generate.build`."""
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
    """Draw `n_studies` studies; the result does not depend on `n_workers`."""
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
