"""Diseases on the frontal view, as attenuation that is added to the body or (air instead of lung) subtracted from it.

Each function returns the disease's parts: one plane, and hence one bounding box, per part. ``extent`` is 1 or 2, and a
``strength`` below 1 draws the same thing faintly. ``Anatomy.with_disease`` has the diseases that reshape the body.
"""

from __future__ import annotations

import numpy as np

from sae_lens_maira.phantom.world.anatomy import Anatomy
from sae_lens_maira.phantom.world.concepts import Extent, Side
from sae_lens_maira.phantom.world.film import Film, Plane, blob, ellipse, smooth_step, tube
from sae_lens_maira.phantom.world.frontal import FrontalBody, diaphragm, rib_profile, rib_surface, sign


def effusion(film: Film, body: Anatomy, drawn: FrontalBody, side: Side, extent: Extent) -> list[Plane]:
    """Fluid at the base that rises along the wall: a small effusion fills the angle, a large one the lower half."""
    rng = body.choice(f"effusion_{side}")
    base = diaphragm(film, body, side)
    outward = np.clip((film.x * sign(side) - 0.06) / (body.cage_half_width - 0.06), 0.0, 1.0)
    if extent == 1:
        surface = body.diaphragm_top(side) + 0.02 + float(rng.uniform(-0.01, 0.01)) - 0.16 * outward**3
    else:
        surface = body.diaphragm_top(side) - 0.14 - float(rng.uniform(0.0, 0.05)) - 0.15 * outward**3
    fluid = smooth_step(film.y - np.minimum(surface, base + 0.03), 0.012)
    return [drawn.lungs[side] * fluid * 0.72]


def pneumothorax(
    film: Film, body: Anatomy, drawn: FrontalBody, side: Side, extent: Extent, strength: float
) -> list[Plane]:
    """Air around a collapsed lung: without vessels, darker than lung, bounded by the white line of the pleura."""
    rng = body.choice(f"pneumothorax_{side}")
    width = (0.075 if extent == 1 else 0.155) + float(rng.uniform(-0.008, 0.008))
    higher = np.clip((0.62 - film.y) / 0.4, 0.0, 1.0)  # air rises: the gap is widest at the apex
    depth = width * (0.25 + 0.9 * higher)
    outside = smooth_step(depth - drawn.wall_distance, 0.004) * smooth_step(0.72 - film.y, 0.05)
    edge = np.clip(1.0 - np.abs(depth - drawn.wall_distance) / 0.010, 0.0, 1.0) * smooth_step(0.70 - film.y, 0.05)
    within = drawn.lungs[side]
    collapsed = within * (1.0 - outside) * (0.05 if extent == 1 else 0.10)
    collapsed *= smooth_step(0.66 - film.y, 0.06)
    return [strength * (0.40 * edge * within - outside * within * (0.20 + drawn.markings) + collapsed)]


def consolidation(
    film: Film, body: Anatomy, drawn: FrontalBody, side: Side, extent: Extent, strength: float
) -> list[Plane]:
    """A dense, patchy cloud in the middle or lower zone, with a dark air bronchogram through it."""
    rng = body.choice(f"consolidation_{side}")
    s = sign(side)
    x, y = s * float(rng.uniform(0.20, 0.25)), float(rng.uniform(0.50, 0.60))
    size = 0.085 if extent == 1 else 0.155
    cloud = film.blank()
    for angle in rng.uniform(0.0, 2.0 * np.pi, 5):
        lobe = (x + 0.45 * size * float(np.cos(angle)), y + 0.45 * size * float(np.sin(angle)))
        np.maximum(cloud, blob(film, lobe, (size * 0.85, size * 0.75)), out=cloud)
    cloud = np.clip(cloud * 1.5, 0.0, 1.0)
    bronchus = tube(
        film,
        [(x - 0.6 * size * s, y - 0.3 * size), (x + 0.5 * size * s, y + 0.3 * size)],
        (0.010, 0.004),
        0.008,
    )
    return [drawn.lungs[side] * cloud * (1.0 - 0.4 * bronchus) * 0.58 * strength]


def edema(film: Film, body: Anatomy, drawn: FrontalBody, extent: Extent, strength: float) -> list[Plane]:
    """Haze around both hila in the shape of a bat's wings, thicker vessels, and short septal lines at the bases."""
    reach, density = ((0.19, 0.24), 0.30) if extent == 1 else ((0.27, 0.34), 0.50)
    parts = []
    sides: tuple[Side, Side] = ("right", "left")
    for side in sides:
        s = sign(side)
        wing = np.sqrt(blob(film, (s * 0.13, 0.48), reach))
        septal = film.blank()
        for y in (0.60, 0.635, 0.67):
            inner, outer = body.cage_half_width - 0.085, body.cage_half_width - 0.02
            np.maximum(septal, tube(film, [(s * inner, y), (s * outer, y + 0.004)], 0.004, 0.005), out=septal)
        parts.append(
            drawn.lungs[side] * strength * (density * wing + 0.25 * septal)
            + 0.7 * strength * drawn.lungs[side] * drawn.markings * wing
        )
    return parts


def atelectasis(film: Film, body: Anatomy, drawn: FrontalBody, side: Side, strength: float) -> list[Plane]:
    """Two or three plate-like bands across the base, nearly horizontal."""
    rng = body.choice(f"atelectasis_{side}")
    s, base = sign(side), body.diaphragm_top(side) - 0.055
    out = film.blank()
    for k in range(2):
        y, slope = base - 0.055 * k + float(rng.uniform(-0.008, 0.008)), float(rng.uniform(-0.05, 0.02))
        inner = (0.13 if side == "right" else 0.19) + float(rng.uniform(0.0, 0.02))
        np.maximum(out, tube(film, [(s * inner, y), (s * (inner + 0.15), y + slope)], (0.013, 0.009), 0.006), out=out)
    return [drawn.lungs[side] * out * 0.55 * strength]


def nodule(film: Film, body: Anatomy, drawn: FrontalBody, side: Side, extent: Extent, strength: float) -> list[Plane]:
    """A round, well-defined shadow in the upper or middle zone."""
    rng = body.choice(f"nodule_{side}")
    center = (sign(side) * float(rng.uniform(0.17, 0.26)), float(rng.uniform(0.27, 0.40)))
    radius = 0.032 if extent == 1 else 0.058
    return [drawn.lungs[side] * ellipse(film, center, (radius, radius * 0.94), 0.008) * 0.50 * strength]


def rib_fracture(film: Film, body: Anatomy, drawn: FrontalBody, side: Side, strength: float) -> list[Plane]:
    """Three neighboring ribs broken near the side wall: a step, a gap, and bleeding beside them."""
    rng = body.choice(f"rib_fracture_{side}")
    s, along, middle = sign(side), float(rng.uniform(0.300, 0.325)), float(rng.uniform(0.46, 0.52))
    outward = film.x * s
    window = ellipse(film, (s * along, middle), (0.062, 1.55 * body.rib_spacing), 0.02)
    phase = rib_surface(film, body)
    stepped = rib_profile(phase + 0.42 * smooth_step(outward - along, 0.006))
    gap = np.clip(1.0 - np.abs(outward - along) / 0.011, 0.0, 1.0)
    bone = np.float32(body.rib_density) * (stepped - rib_profile(phase)) * (1.0 - gap)
    ends = np.clip(1.0 - np.abs(np.abs(outward - along) - 0.018) / 0.010, 0.0, 1.0) * stepped
    bleeding = ellipse(film, (s * (body.cage_half_width - 0.012), middle), (0.034, 0.10), 0.012) * drawn.lungs[side]
    return [
        strength
        * (window * (bone * 1.6 + 0.42 * ends - 0.25 * gap * rib_profile(phase)) * drawn.lungs[side] + 0.42 * bleeding)
    ]
