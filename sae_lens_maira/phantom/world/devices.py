"""Devices on the frontal view, as attenuation that is added to the body.

Each function returns the device's parts: one plane, and hence one bounding box, per part. A device's position varies
between patients, but neither between a patient's studies nor with what else is present; ``body.choice`` ensures that.
"""

from __future__ import annotations

import numpy as np

from sae_lens_maira.phantom.world.anatomy import Anatomy
from sae_lens_maira.phantom.world.concepts import Side
from sae_lens_maira.phantom.world.film import Film, Plane, curve, ellipse, tube
from sae_lens_maira.phantom.world.frontal import CARINA_Y, sign


def pacemaker(film: Film, body: Anatomy) -> list[Plane]:
    """A generator under the patient's left clavicle, with two leads into the right atrium and ventricle."""
    rng = body.choice("pacemaker")
    x, y = float(rng.uniform(0.22, 0.28)), float(rng.uniform(0.225, 0.27))
    case = ellipse(film, (x, y), (0.062, 0.048), 0.006, tilt=float(rng.uniform(-0.3, 0.3)))
    vein = curve([(x - 0.02, y - 0.03), (0.16, 0.17), (0.03, 0.17), (-0.045, 0.30)])
    atrial = tube(
        film,
        [*vein, *curve([(-0.045, 0.30), (-0.075, 0.50), (-0.06, 0.60), (-0.045, 0.54)], 6)],
        0.0055,
        0.004,
    )
    ventricular = tube(film, curve([(-0.045, 0.30), (-0.10, 0.60), (-0.02, 0.72), (0.10, 0.70)]), 0.0055, 0.004)
    return [np.maximum(1.6 * case, 0.85 * np.maximum(atrial, ventricular))]


def endotracheal_tube(film: Film, body: Anatomy, *, too_low: bool) -> list[Plane]:
    """A tube down the trachea. Its tip lies well above the carina, or runs down into the right main bronchus."""
    rng = body.choice("endotracheal_tube")
    tip = float(rng.uniform(0.215, 0.25))
    path = [(0.012, -0.12), (0.008, 0.10), (0.0, tip)]
    if too_low:
        path = [
            (0.012, -0.12),
            (0.008, 0.10),
            (-0.002, CARINA_Y - 0.03),
            (-0.04, CARINA_Y + 0.05),
            (-0.085, CARINA_Y + 0.115),
        ]
    wall = tube(film, path, 0.0145, 0.004) - 0.45 * tube(film, path, 0.005, 0.004)
    return [1.1 * wall]


def nasogastric_tube(film: Film, body: Anatomy) -> list[Plane]:
    """A thin line down the esophagus, behind the heart, that curls up in the stomach under the left diaphragm."""
    rng = body.choice("nasogastric_tube")
    sway, tip_x = float(rng.uniform(-0.008, 0.008)), float(rng.uniform(0.20, 0.25))
    start = (-0.022 + sway, -0.12)
    path = [
        *curve([start, (-0.03 + sway, 0.4), (0.015, 0.70), (0.04, 0.80)]),
        *curve([(0.04, 0.80), (0.07, 0.93), (0.18, 0.95), (tip_x, 0.86)], 7),
    ]
    return [0.75 * tube(film, path, 0.0075, 0.004)]


def central_line(film: Film, body: Anatomy, side: Side) -> list[Plane]:
    """A line from the neck or from under the clavicle into the superior vena cava."""
    rng = body.choice(f"central_line_{side}")
    s, tip = sign(side), (-0.048, float(rng.uniform(0.40, 0.45)))
    if side == "right":
        path = curve([(s * 0.15, -0.02), (s * 0.12, 0.12), (-0.045, 0.18), (-0.050, 0.28), tip])
    else:
        entry = float(rng.uniform(0.20, 0.24))
        path = curve([(s * 0.40, entry + 0.04), (s * 0.22, 0.10), (0.08, 0.18), (-0.065, 0.22), tip])
    return [0.80 * tube(film, path, 0.0068, 0.004)]


def sternotomy_wires(film: Film, body: Anatomy) -> list[Plane]:
    """Five wire loops around the sternum, one below the other in the midline."""
    rng = body.choice("sternotomy_wires")
    out = film.blank()
    for y in np.linspace(0.25, 0.62, 5) + rng.uniform(-0.008, 0.008, 5):
        shift = float(rng.uniform(-0.006, 0.006))
        ring = ellipse(film, (shift, float(y)), (0.030, 0.019), 0.004) - ellipse(
            film, (shift, float(y)), (0.019, 0.009), 0.004
        )
        twist = tube(film, [(shift + 0.018, float(y)), (shift + 0.038, float(y) - 0.016)], 0.004, 0.003)
        np.maximum(out, np.maximum(ring, twist), out=out)
    return [1.3 * out]
