"""The frontal view of the body without diseases and devices (but reshaped by some diseases), as attenuation.

Soft tissue fills the outline, the lungs' air lowers its density, and heart, bones and abdomen raise it. The masks of
lungs and heart are kept, because the functions that draw diseases need them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sae_lens_maira.phantom.world.anatomy import Anatomy
from sae_lens_maira.phantom.world.concepts import Side
from sae_lens_maira.phantom.world.film import Film, Plane, blob, curve, ellipse, smooth_step, tube

CARINA_Y = 0.335


@dataclass(frozen=True)
class FrontalBody:
    """The body's landmarks, each of shape (size, size), and on demand its attenuation; masks run from 0 to 1.

    Bounding boxes need only the landmarks, while vessels and bones take most of the time; so those are computed lazily.
    """

    film: Film
    body: Anatomy
    cage: Plane
    silhouette: Plane  # heart and mediastinum
    knob: Plane  # of the aorta
    heart: Plane
    lungs: dict[Side, Plane]
    below: Plane  # the diaphragm
    wall_distance: Plane  # from the rib cage's inner edge, positive inside

    @property
    def air(self) -> Plane:
        """Mask of both lungs."""
        return self.lungs["right"] + self.lungs["left"]

    @cached_property
    def markings(self) -> Plane:
        """Attenuation of the vessels, which are missing where a lung has collapsed."""
        return _vessels(self.film, self.body) * self.air * self.body.vessel_density

    @cached_property
    def attenuation(self) -> Plane:
        """The whole body."""
        film, body, below = self.film, self.body, self.below
        x, y = film.x, film.y
        x_abs = np.abs(x)
        shoulder = 0.035 + 0.14 * smooth_step(x_abs - 0.24, 0.16) + 0.02 * smooth_step(x_abs - 0.40, 0.1)
        outline = smooth_step(y - shoulder, 0.03) * smooth_step(0.475 + 0.03 * np.square(y - 0.3) - x_abs, 0.02)
        outline = np.maximum(outline, smooth_step(0.13 - x_abs, 0.02))  # the neck
        tissue = outline * body.soft_tissue * (0.88 + 0.25 * np.clip(y, 0.0, 1.0) - 0.6 * np.square(x))

        attenuation = tissue * (1.0 - body.lung_air * self.air)
        attenuation += 0.10 * self.silhouette * (1.0 - below) + 0.26 * self.heart + 0.10 * self.knob
        attenuation += 0.34 * below * self.cage
        attenuation -= (
            0.22 * ellipse(film, (0.19, body.diaphragm_left_drop + 0.84), (0.085, 0.05), 0.02) * below
        )  # gastric bubble
        attenuation += _breasts(film, body)
        attenuation += _bones(film, body, self.cage, self.wall_distance, outline)
        attenuation -= _airway(film)
        attenuation += self.markings
        attenuation += _marker(film)
        return np.maximum(attenuation, 0.015)


def sign(side: Side) -> float:
    """The sign of x on one side: the patient's right is on the image's left."""
    return -1.0 if side == "right" else 1.0


def diaphragm(film: Film, body: Anatomy, side: Side) -> Plane:
    """y of the diaphragm at every pixel's x: a dome that falls off toward the costophrenic angle."""
    middle, reach = sign(side) * 0.19, body.cage_half_width - 0.19
    fall = np.square((film.x - middle) / reach)
    return body.diaphragm_top(side) + body.dome_height * (1.0 - body.dome_flattening) * fall


_HEIGHTS = np.linspace(0.0, 1.0, 161)


def _smooth_profile(points: list[tuple[float, float]]) -> npt.NDArray[np.float64]:
    """A rounded curve through (y, half-width) points, sampled at ``_HEIGHTS``."""
    ys, widths = zip(*points, strict=True)
    padded = np.interp(np.linspace(-0.05, 1.05, 177), ys, widths)
    kernel = np.hanning(19)[1:-1]
    return np.convolve(padded, kernel / kernel.sum(), mode="valid").astype(np.float64)


_RIGHT_BORDER = _smooth_profile(
    [(0.0, 0.7), (0.2, 0.8), (0.36, 0.95), (0.44, 1.15), (0.55, 1.6), (0.64, 1.75), (0.74, 1.6), (0.9, 1.2)]
)
_LEFT_BORDER = _smooth_profile(
    [
        (0.0, 0.7),
        (0.2, 0.85),
        (0.36, 1.0),
        (0.42, 1.3),
        (0.48, 1.75),
        (0.55, 2.85),
        (0.62, 3.6),
        (0.69, 3.9),
        (0.75, 3.7),
        (0.82, 2.6),
        (0.9, 1.2),
    ]
)
_IS_HEART = np.clip((_HEIGHTS - 0.40) / 0.12, 0.0, 1.0)


def borders(body: Anatomy) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Half-widths of heart and mediastinum to the patient's right and left, sampled at ``_HEIGHTS``.

    The curves above are in units of the mediastinum's half-width. The heart scales separately, and more to the left.
    """
    size = body.heart_size - 1.0
    right = body.mediastinum_half_width * _RIGHT_BORDER * (1.0 + 0.75 * size * _IS_HEART)
    left = body.mediastinum_half_width * _LEFT_BORDER * (1.0 + size * _IS_HEART)
    return right, left


def _by_height(y: Plane, profile: npt.NDArray[np.float64]) -> Plane:
    return np.interp(y, _HEIGHTS, profile).astype(np.float32)


def draw_frontal(film: Film, body: Anatomy) -> FrontalBody:
    """The landmarks of a body that ``Anatomy.with_disease`` has reshaped."""
    x, y = film.x, film.y

    cage_height = 0.57 - body.cage_top
    lower = np.where(y > 0.57, 0.45, 1.0).astype(np.float32)  # below its widest the cage narrows only slowly
    radius = np.sqrt(np.square(x / body.cage_half_width) + np.square((y - 0.57) * lower / cage_height))
    wall_distance = (1.0 - radius) * body.cage_half_width
    cage = smooth_step(wall_distance, 0.008)

    right_border, left_border = borders(body)
    inside = np.minimum(_by_height(y, left_border) - x, x + _by_height(y, right_border))
    knob = ellipse(film, (0.045, 0.295), (body.aortic_knob, body.aortic_knob), 0.012)
    silhouette = np.maximum(smooth_step(inside, 0.010), knob)

    lungs: dict[Side, Plane] = {}
    below = film.blank()
    for side in ("right", "left"):
        half = smooth_step(x * sign(side), 0.004)
        above = smooth_step(diaphragm(film, body, side) - y, 0.007)
        lungs[side] = cage * (1.0 - silhouette) * above * half
        below += (1.0 - above) * half
    heart = smooth_step(inside, 0.05) * smooth_step(y - 0.50, 0.10) * (1.0 - below)
    return FrontalBody(film, body, cage, silhouette, knob, heart, lungs, below, wall_distance)


def _vessels(film: Film, body: Anatomy) -> Plane:
    """Both hila, and the vessels that fan out from them, fork, and get thinner toward the wall."""
    rng = body.choice("vessels")
    out = film.blank()
    for s, hilum_y in ((-1.0, 0.47), (1.0, 0.445)):
        for angle in np.array([-1.2, -0.6, -0.1, 0.4, 0.85, 1.25]) + rng.uniform(-0.15, 0.15, 6):
            root = (s * (0.085 + rng.uniform(0.0, 0.02)), hilum_y + rng.uniform(-0.02, 0.02))
            length, bend = rng.uniform(0.10, 0.14), rng.uniform(-0.5, 0.5, 2)
            middle = (root[0] + s * np.cos(angle) * length, root[1] + np.sin(angle) * length)
            for fork in bend:
                tip = (
                    middle[0] + s * np.cos(angle + fork) * length,
                    middle[1] + np.sin(angle + fork) * length,
                )
                np.maximum(out, tube(film, [middle, tip], (0.005, 0.0), 0.008), out=out)
            np.maximum(out, tube(film, [root, middle], (0.010, 0.004), 0.009), out=out)
        np.maximum(out, 0.75 * blob(film, (s * 0.095, hilum_y), (0.06, 0.10), tilt=-0.3 * s), out=out)
    return out


def _breasts(film: Film, body: Anatomy) -> Plane:
    strength = np.float32(0.22 * max(body.breast - 0.45, 0.0))
    if strength == 0.0:
        return film.blank()
    return strength * (blob(film, (-0.22, 0.66), (0.17, 0.16)) + blob(film, (0.22, 0.66), (0.17, 0.16)))


def rib_surface(film: Film, body: Anatomy) -> Plane:
    """The number of the posterior rib at each pixel: integers are rib centers, halves lie between two ribs."""
    return (film.y - 1.05 * np.square(film.x) - 0.02) / body.rib_spacing - body.rib_phase


def rib_profile(phase: Plane) -> Plane:
    """Bone where the rib number is near an integer; a rib is denser along its edges than in its middle."""
    wave = np.cos(phase * np.float32(2.0 * np.pi))
    bone = np.clip(wave * 2.2 + 0.35, 0.0, 1.0)
    return bone * (1.0 - 0.30 * np.clip(wave * 3.0 - 2.0, 0.0, 1.0))


def _bones(film: Film, body: Anatomy, cage: Plane, wall_distance: Plane, outline: Plane) -> Plane:
    x, y = film.x, film.y
    x_abs = np.abs(x)
    high = np.float32(body.rib_density)
    fade = 1.0 - 0.75 * smooth_step(y - 0.80, 0.10)
    posterior = rib_profile(rib_surface(film, body)) * smooth_step(x_abs - 0.045, 0.02)
    anterior = rib_profile((y + 0.62 * x_abs - 0.9 * np.square(x)) / (body.rib_spacing * 1.12) + body.rib_phase)
    anterior *= smooth_step(x_abs - 0.17, 0.05)
    ribs = cage * fade * (high * posterior + 0.45 * high * anterior)
    rim = np.clip(1.0 - np.abs(wall_distance) / 0.016, 0.0, 1.0) * smooth_step(y - 0.14, 0.05) * fade * 0.22

    spine_x = x - body.spine_bend * np.sin(3.0 * y)
    column = smooth_step(0.038 - np.abs(spine_x), 0.006)
    vertebrae = 0.75 + 0.25 * np.cos(y * np.float32(2.0 * np.pi / 0.066))
    spine = 0.30 * column * vertebrae
    spine += 0.16 * np.clip(1.0 - np.abs(np.abs(spine_x) - 0.036) / 0.006, 0.0, 1.0)

    out = ribs + rim + spine * outline
    for s in (-1.0, 1.0):
        collar = curve(
            [
                (s * 0.04, body.clavicle_y + 0.06),
                (s * 0.17, body.clavicle_y + 0.06),
                (s * 0.24, body.clavicle_y - 0.06),
                (s * 0.42, body.clavicle_y - 0.005),
            ]
        )
        out += 0.24 * tube(film, collar, 0.0155, 0.006) + 0.10 * tube(film, collar, 0.007, 0.006)
        scapula = curve([(s * 0.34, 0.20), (s * 0.345, 0.32), (s * 0.42, 0.46)], 5)
        out += 0.15 * tube(film, scapula, 0.013, 0.008)
        out += 0.30 * ellipse(film, (s * 0.452, 0.205), (0.042, 0.045), 0.012) * outline  # head of the humerus
    return out


def _airway(film: Film) -> Plane:
    """The air in the trachea and the main bronchi."""
    trachea = tube(film, [(0.002, -0.1), (-0.004, CARINA_Y - 0.01)], 0.0155, 0.006)
    right = tube(film, [(-0.004, CARINA_Y - 0.012), (-0.065, CARINA_Y + 0.065)], (0.012, 0.008), 0.006)
    left = tube(film, [(-0.004, CARINA_Y - 0.012), (0.085, CARINA_Y + 0.075)], (0.010, 0.006), 0.006)
    return 0.34 * np.maximum.reduce([trachea, 0.8 * right, 0.7 * left])


def _marker(film: Film) -> Plane:
    """The lead letter "L" beside the patient's left shoulder."""
    return 1.6 * tube(film, [(0.445, 0.045), (0.445, 0.085), (0.468, 0.085)], 0.0045, 0.003)
