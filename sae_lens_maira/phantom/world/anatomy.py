"""A patient's body: the numbers that stay the same from one study to the next.

They determine the frontal, the lateral and the prior image alike. Each is sampled from a range that keeps normal
anatomy apart from disease: the broadest normal heart is clearly narrower than the narrowest enlarged one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, get_type_hints

import numpy as np

from sae_lens_maira.phantom.world.concepts import State


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Lengths in body coordinates (fractions of the film) unless noted; ``Annotated`` holds each normal range."""

    seed: int
    cage_half_width: Annotated[float, (0.385, 0.42)]
    cage_top: Annotated[float, (0.075, 0.105)]
    diaphragm_right: Annotated[float, (0.70, 0.735)]  # y of the right dome's top
    diaphragm_left_drop: Annotated[float, (0.015, 0.035)]  # the left dome lies lower
    dome_height: Annotated[float, (0.11, 0.14)]  # from the top down to the costophrenic angle
    heart_size: Annotated[float, (0.92, 1.08)]  # relative width
    mediastinum_half_width: Annotated[float, (0.05, 0.062)]
    aortic_knob: Annotated[float, (0.034, 0.046)]
    rib_spacing: Annotated[float, (0.074, 0.086)]
    rib_phase: Annotated[float, (0.0, 1.0)]
    rib_density: Annotated[float, (0.12, 0.19)]
    clavicle_y: Annotated[float, (0.12, 0.15)]
    spine_bend: Annotated[float, (-0.012, 0.012)]
    soft_tissue: Annotated[float, (0.92, 1.1)]  # relative thickness
    breast: Annotated[float, (0.0, 1.0)]  # 0: none, 1: dense
    vessel_density: Annotated[float, (0.14, 0.2)]
    barrel: Annotated[float, (-0.02, 0.02)]  # depth of the chest on the lateral view
    dome_flattening: float = 0.0
    lung_air: float = 0.66

    @classmethod
    def sample(cls, seed: int) -> Anatomy:
        """The body of patient ``seed``."""
        rng = np.random.default_rng([seed, 0xB0D7])
        drawn = {name: float(rng.uniform(low, high)) for name, (low, high) in _normal_ranges().items()}
        return cls(seed=seed, **drawn)

    def choice(self, name: str) -> np.random.Generator:
        """Random numbers for where ``name`` lies in this patient: the same in every study, whatever else it shows."""
        return np.random.default_rng([self.seed, *name.encode()])

    def with_disease(self, state: State) -> Anatomy:
        """The body reshaped by cardiomegaly and hyperinflation; other diseases are drawn on top of it instead."""
        body = self
        if "cardiomegaly" in state:
            body = replace(body, heart_size=body.heart_size * 1.42)
        if "hyperinflation" in state:
            body = replace(body, diaphragm_right=body.diaphragm_right + 0.095, dome_flattening=0.8, lung_air=0.76)
        return body

    def diaphragm_top(self, side: str) -> float:
        """y of the dome's top on one side."""
        return self.diaphragm_right + (self.diaphragm_left_drop if side == "left" else 0.0)


@cache
def _normal_ranges() -> dict[str, tuple[float, float]]:
    hints = get_type_hints(Anatomy, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items() if hasattr(hint, "__metadata__")}
