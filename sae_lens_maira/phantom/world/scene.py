"""From a patient's state to pixels and boxes: the body, then every present concept drawn on it.

What a concept adds depends on the body and on the shot, and never on which other additive concepts are present. So two
scenes that differ in one concept differ only where this concept is: they are a counterfactual pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from sae_lens_maira.data.study import Box
from sae_lens_maira.phantom.world import devices, disease
from sae_lens_maira.phantom.world.anatomy import Anatomy
from sae_lens_maira.phantom.world.concepts import CONCEPTS, Appearance, Side
from sae_lens_maira.phantom.world.film import Film, Plane, Shot, expose
from sae_lens_maira.phantom.world.frontal import FrontalBody, draw_frontal
from sae_lens_maira.phantom.world.lateral import draw_lateral

if TYPE_CHECKING:
    from PIL.Image import Image

Projection = Literal["frontal", "lateral"]
SUBTLE_STRENGTH = 0.62
RESHAPING = ("cardiomegaly", "hyperinflation")
"""Concepts that change the body's shape instead of adding to it."""


@dataclass(frozen=True, slots=True)
class PhantomImage:
    """One exposure of one patient, drawn when it is opened: 8-bit gray ("L"), ``size`` pixels wide and high."""

    anatomy_seed: int
    state: Mapping[str, Appearance]
    shot: Shot
    view: Projection = "frontal"
    size: int = 112

    def pixels(self) -> npt.NDArray[np.uint8]:
        """The image as a (size, size) array."""
        film = Film(self.size, self.shot)
        body = Anatomy.sample(self.anatomy_seed).with_disease(self.state)
        if self.view == "lateral":
            return expose(draw_lateral(film, body, self.state), self.shot)
        drawn = draw_frontal(film, body)
        attenuation = drawn.attenuation
        for name, appearance in self.state.items():
            for part in draw_concept(film, body, drawn, name, appearance):
                attenuation = attenuation + part
        return expose(attenuation, self.shot)

    def open(self) -> Image:
        from PIL import Image

        return Image.fromarray(self.pixels())


def draw_concept(film: Film, body: Anatomy, drawn: FrontalBody, name: str, appearance: Appearance) -> list[Plane]:
    """What a visible concept adds: one (size, size) plane of attenuation per part; none if it reshapes the body."""
    concept = CONCEPTS[name]
    extent, strength = appearance.extent, SUBTLE_STRENGTH if appearance.subtle else 1.0
    side: Side = concept.side or "right"
    match concept.family.removesuffix(f"_{side}"):
        case "pacemaker":
            return devices.pacemaker(film, body)
        case "endotracheal_tube":
            return devices.endotracheal_tube(film, body, too_low=name.endswith("too_low"))
        case "nasogastric_tube":
            return devices.nasogastric_tube(film, body)
        case "central_line":
            return devices.central_line(film, body, side)
        case "sternotomy_wires":
            return devices.sternotomy_wires(film, body)
        case "effusion":
            return disease.effusion(film, body, drawn, side, extent)
        case "pneumothorax":
            return disease.pneumothorax(film, body, drawn, side, extent, strength)
        case "consolidation":
            return disease.consolidation(film, body, drawn, side, extent, strength)
        case "edema":
            return disease.edema(film, body, drawn, extent, strength)
        case "atelectasis":
            return disease.atelectasis(film, body, drawn, side, strength)
        case "nodule":
            return disease.nodule(film, body, drawn, side, extent, strength)
        case "rib_fracture":
            return disease.rib_fracture(film, body, drawn, side, strength)
        case "cardiomegaly" | "hyperinflation":
            return []
        case _:
            raise AssertionError(f"no drawing for {name}")


def boxes(image: PhantomImage) -> dict[str, tuple[Box, ...]]:
    """Where each present concept can be seen on a frontal image: one box per part, as fractions of the image."""
    if not image.state:
        return {}
    film = Film(image.size, image.shot)
    body = Anatomy.sample(image.anatomy_seed).with_disease(image.state)
    drawn = draw_frontal(film, body)
    found: dict[str, tuple[Box, ...]] = {}
    for name, appearance in image.state.items():
        if name == "cardiomegaly":
            masks = [np.where(drawn.heart > 0.25, 1.0, 0.0)]
        elif name == "hyperinflation":
            masks = [drawn.lungs["right"], drawn.lungs["left"]]
        else:
            masks = [np.abs(part) for part in draw_concept(film, body, drawn, name, appearance)]
        found[name] = tuple(box for mask in masks if (box := _bounding_box(mask)) is not None)
    return found


def _bounding_box(mask: npt.NDArray[np.floating], relative_threshold: float = 0.15) -> Box | None:
    visible = mask > relative_threshold * max(float(mask.max()), 1e-6)
    columns, rows = np.flatnonzero(visible.any(axis=0)), np.flatnonzero(visible.any(axis=1))
    if not len(columns):
        return None
    height, width = mask.shape
    return Box(
        float(columns[0]) / width,
        float(rows[0]) / height,
        float(columns[-1] + 1) / width,
        float(rows[-1] + 1) / height,
    )
