"""The lateral view: the same body from its left side, the sternum on the image's left and the spine on its right.

A lateral view does not tell the sides apart, so a right and a left finding add up. Findings that it hides
(pneumothorax, rib fracture) are not drawn; labels refer to the frontal view.
"""

from __future__ import annotations

import numpy as np

from sae_lens_maira.phantom.world.anatomy import Anatomy
from sae_lens_maira.phantom.world.concepts import SIDES, State
from sae_lens_maira.phantom.world.film import Film, Plane, blob, curve, ellipse, smooth_step, tube


def draw_lateral(film: Film, body: Anatomy, state: State) -> Plane:
    """The (size, size) attenuation of a body that ``Anatomy.with_disease`` has reshaped, and of its findings."""
    x, y = film.x, film.y
    front = -0.33 - body.barrel - 0.05 * np.sin(np.clip(y, 0.0, 1.0) * np.pi) - (0.03 if body.dome_flattening else 0.0)
    back = 0.36 + 0.04 * np.sin((y - 0.1) * 2.6)
    outline = smooth_step(x - front, 0.02) * smooth_step(back - x, 0.02)
    neck = 1.0 - smooth_step(0.11 - y, 0.06) * smooth_step(np.abs(x - 0.04) - 0.16, 0.05)
    outline = outline * neck

    lung_front, lung_back = front + 0.055, back - 0.055
    apex = smooth_step(np.sqrt(np.clip(np.square(0.36) - np.square(x - 0.03), 0.0, 1.0)) * 1.25 - (0.50 - y), 0.02)
    inside = smooth_step(x - lung_front, 0.012) * smooth_step(lung_back - x, 0.012) * apex
    domes = []
    for side in SIDES:
        fall = np.square((x + 0.10) / 0.36)
        domes.append(
            body.diaphragm_top(side)
            + (0.10 if side == "right" else 0.09) * (1.0 - body.dome_flattening) * fall * (1.0 + 1.2 * (x > -0.10))
        )
    above = [smooth_step(dome - y, 0.007) for dome in domes]
    air = inside * (0.5 * above[0] + 0.5 * above[1])

    scale = body.heart_size
    heart = ellipse(
        film,
        (-0.155 + 0.11 * (scale - 1.0), 0.625),
        (0.145 * scale, 0.125 * (0.55 + 0.45 * scale)),
        0.035,
        tilt=-0.5,
    )
    vessels = blob(film, (-0.12, 0.43), (0.13, 0.17), tilt=-0.3)
    arch = tube(film, curve([(-0.09, 0.46), (-0.06, 0.27), (0.10, 0.25), (0.15, 0.42)]), 0.03, 0.02)
    attenuation = outline * body.soft_tissue * 0.95 * (1.0 - body.lung_air * air * 0.95)
    attenuation += (0.42 * heart + 0.22 * vessels * (1.0 - heart) + 0.10 * arch) * air + 0.30 * outline * (
        1.0 - 0.5 * (above[0] + above[1])
    )
    attenuation += 0.34 * smooth_step(0.20 - y, 0.10) * smooth_step(0.30 - np.abs(x - 0.03), 0.08)  # shoulders
    attenuation += 0.16 * blob(film, (-0.01, 0.46), (0.085, 0.10))  # both hila, one behind the other

    spine_x = x - (0.235 + 0.05 * np.sin((y - 0.15) * 2.6))
    column = smooth_step(0.045 - np.abs(spine_x), 0.010)
    attenuation += (
        column * (0.22 + 0.10 * np.cos(y * np.float32(2.0 * np.pi / 0.07))) * (1.0 - 0.3 * np.clip(y, 0.0, 1.0))
    )
    ribs = np.clip(
        np.cos((y - 0.55 * x + 0.2 * np.square(x)) * np.float32(2.0 * np.pi / body.rib_spacing)) * 2.0 - 0.4,
        0.0,
        1.0,
    )
    attenuation += 0.45 * body.rib_density * ribs * inside
    sternum = tube(
        film,
        curve([(-0.30 - body.barrel, 0.24), (-0.37 - body.barrel, 0.42), (-0.355 - body.barrel, 0.62)]),
        0.014,
        0.008,
    )
    attenuation += 0.28 * sternum
    attenuation -= 0.17 * tube(film, [(0.055, -0.1), (0.035, 0.20), (0.03, 0.38)], 0.014, 0.008)  # trachea
    return np.maximum(attenuation + _findings(film, body, state, inside, domes), 0.015)


def _findings(film: Film, body: Anatomy, state: State, inside: Plane, domes: list[Plane]) -> Plane:
    out = film.blank()
    for name, (extent, subtle) in state.items():
        strength = np.float32(0.62 if subtle else 1.0)
        side = "left" if "left" in name else "right"
        rng = body.choice(f"lateral_{name.removesuffix('_small').removesuffix('_large')}")
        if name.startswith("effusion"):
            dome = domes[SIDES.index(side)]
            surface = (
                (dome + 0.02 - 0.16 * np.clip((film.x - 0.0) / 0.3, 0.0, 1.0) ** 3)
                if extent == 1
                else 0.56 - 0.10 * np.square(film.x / 0.3)
            )
            out += 0.36 * inside * smooth_step(film.y - surface, 0.014) * smooth_step(dome - film.y, 0.007)
        elif name.startswith("consolidation"):
            size = 0.08 if extent == 1 else 0.14
            out += (
                0.42
                * strength
                * inside
                * np.clip(1.6 * blob(film, (float(rng.uniform(-0.02, 0.14)), 0.56), (size, size)), 0.0, 1.0)
            )
        elif name == "edema":
            out += strength * (0.24 if extent == 1 else 0.40) * inside * blob(film, (0.0, 0.48), (0.25, 0.30))
        elif name.startswith("nodule"):
            radius = 0.032 if extent == 1 else 0.058
            out += (
                0.36
                * strength
                * inside
                * ellipse(film, (float(rng.uniform(-0.18, 0.12)), 0.34), (radius, radius), 0.008)
            )
        elif name.startswith("atelectasis"):
            level = body.diaphragm_top(side) - 0.05
            out += (
                0.36
                * strength
                * inside
                * tube(film, [(-0.02, level - 0.01), (0.14, level + 0.02)], (0.013, 0.008), 0.006)
            )
        elif name == "pacemaker":
            leads = tube(film, curve([(-0.27, 0.26), (0.05, 0.20), (0.02, 0.50), (-0.15, 0.66)]), 0.0055, 0.004)
            out += np.maximum(1.5 * ellipse(film, (-0.29, 0.25), (0.022, 0.05), 0.006), 0.8 * leads)
        elif name.startswith("endotracheal_tube"):
            out += 0.7 * tube(
                film,
                [(0.055, -0.1), (0.037, 0.18), (0.033, 0.24 if name.endswith("well_placed") else 0.42)],
                0.011,
                0.004,
            )
        elif name == "nasogastric_tube":
            out += 0.7 * tube(film, curve([(0.08, -0.1), (0.07, 0.40), (0.05, 0.70), (-0.08, 0.92)]), 0.0075, 0.004)
        elif name.startswith("central_line"):
            out += 0.7 * tube(film, curve([(0.0, -0.02), (-0.03, 0.20), (-0.02, 0.42)]), 0.0068, 0.004)
        elif name == "sternotomy_wires":
            for y in np.linspace(0.27, 0.60, 5):
                center = (-0.335 - body.barrel - 0.03 * float(np.sin((y - 0.24) * 8.0)), float(y))
                out += 1.2 * ellipse(film, center, (0.012, 0.018), 0.004)
    return out
