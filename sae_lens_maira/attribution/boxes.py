"""How well a map points at a box: pointing game, energy inside, and overlap, all on the grid of patches.

A patch counts as inside if a box overlaps it, since a box may be smaller than a patch. ``share`` is the share of
patches inside: what a random map scores in the pointing game and for the energy.

- ``pointing``: whether the largest patch is inside (Zhang et al. 2018, "Top-down Neural Attention by Excitation
  Backprop", section 4.1).
- ``energy``: share of the map's positive mass inside (Wang et al. 2020, Score-CAM, arXiv 1910.01279, section 4.2).
- ``iou``: overlap of the patches inside with the same number of largest patches, over their union.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from sae_lens_maira.data.study import Box, Study


class BoxScores(NamedTuple):
    """See the module's docstring."""

    share: float
    pointing: float
    energy: float
    iou: float


def boxes_of(study: Study, label: str) -> list[Box]:
    """The boxes of all sentences that say that a label is present, on the frontal image."""
    return [
        box
        for sentence in study.sentences
        if label in sentence.labels and sentence.labels[label].positive
        for box in sentence.boxes
    ]


def patches_inside(boxes: Iterable[Box], side: int) -> Bool[np.ndarray, " n_patches"]:
    """The patches that boxes overlap, row by row."""
    inside = np.zeros((side, side), dtype=bool)
    edges = np.arange(side) / side
    for box in boxes:
        rows = (edges < box.y_max) & (edges + 1 / side > box.y_min)
        columns = (edges < box.x_max) & (edges + 1 / side > box.x_min)
        inside |= rows[:, None] & columns[None]
    return inside.ravel()


def score_boxes(values: Float[np.ndarray, " n_patches"], inside: Bool[np.ndarray, " n_patches"]) -> BoxScores:
    """Compare a map with the patches inside of boxes; there is at least one."""
    order = np.argsort(-values, kind="stable")
    mass = np.clip(values, 0, None)
    top = np.zeros_like(inside)
    top[order[: inside.sum()]] = True
    return BoxScores(
        share=float(inside.mean()),
        pointing=float(inside[order[0]]),
        energy=float(mass[inside].sum() / mass.sum()) if mass.sum() > 0 else float(inside.mean()),
        iou=float((top & inside).sum() / (top | inside).sum()),
    )


def center_prior(side: int) -> Float[np.ndarray, " n_patches"]:
    """A map that points at the middle, whatever the image: a Gaussian of one quarter of the image's width."""
    offset = (np.arange(side) + 0.5) / side - 0.5
    return np.exp(-(offset[:, None] ** 2 + offset[None] ** 2) / (2 * 0.25**2)).ravel()


def read_boxes(rows: Iterable[Mapping[str, object]]) -> dict[str, dict[str, list[Box]]]:
    """Boxes of a table with the columns ``study_id``, ``label`` and ``x_min``, ``y_min``, ``x_max``, ``y_max``.

    Coordinates are fractions of the image's width and height, as in PadChest-GR's boxes.

    Returns:
        boxes by study and label.
    """
    found: dict[str, dict[str, list[Box]]] = {}
    for row in rows:
        box = Box(*(float(str(row[name])) for name in Box._fields))
        found.setdefault(str(row["study_id"]), {}).setdefault(str(row["label"]), []).append(box)
    return found
