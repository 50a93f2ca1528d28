"""Drawing on film: a coordinate frame and a few soft shapes.

Everything is drawn in body coordinates: x from -0.5 (the image's left, the patient's right) to 0.5, y from 0 (top) to
1. A ``Film`` is a pixel grid that knows where the body lies on it, so the same shapes move with the body on another
film.

Every shape fades to exactly zero at a finite distance. So a finding changes only the pixels that it touches, and each
shape is computed only inside its own window, which makes drawing fast enough for a thousand studies per minute.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Plane = npt.NDArray[np.floating[Any]]
Point = tuple[float, float]
Window = tuple[slice, slice]


@dataclass(frozen=True, slots=True)
class Shot:
    """How one exposure was taken: the body's position on the film, the exposure, and the noise.

    Args:
        shift_x: to the right, as a fraction of the film.
        shift_y: downwards, as a fraction of the film.
        scale: of the body.
        tilt: in radians.
        exposure: factor of the attenuation.
        noise: standard deviation of the grain.
        noise_seed: of the grain.
    """

    shift_x: float = 0.0
    shift_y: float = 0.0
    scale: float = 1.0
    tilt: float = 0.0
    exposure: float = 1.0
    noise: float = 0.012
    noise_seed: int = 0

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Shot:
        """A random shot in the range of daily practice."""
        return cls(
            shift_x=float(rng.uniform(-0.025, 0.025)),
            shift_y=float(rng.uniform(-0.025, 0.025)),
            scale=float(rng.uniform(0.96, 1.05)),
            tilt=float(rng.uniform(-0.035, 0.035)),
            exposure=float(rng.uniform(0.85, 1.2)),
            noise=float(rng.uniform(0.006, 0.018)),
            noise_seed=int(rng.integers(2**31)),
        )


class Film:
    """A square pixel grid with the body positioned by ``shot``; ``x`` and ``y`` are each pixel's body coordinates."""

    def __init__(self, size: int, shot: Shot) -> None:
        self.size, self.shot = size, shot
        self._cos, self._sin = math.cos(shot.tilt), math.sin(shot.tilt)
        centers = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
        u, v = centers[None, :] - np.float32(shot.shift_x), centers[:, None] - np.float32(shot.shift_y)
        self.x: Plane = ((u * self._cos + v * self._sin) / shot.scale).astype(np.float32)
        self.y: Plane = ((v * self._cos - u * self._sin) / shot.scale + 0.5).astype(np.float32)

    def blank(self) -> Plane:
        return np.zeros((self.size, self.size), np.float32)

    def window(self, x_min: float, y_min: float, x_max: float, y_max: float) -> Window:
        """The pixels that cover a rectangle in body coordinates; some more if the body is tilted."""
        scale, shot = self.shot.scale, self.shot
        corners = [(x * scale, (y - 0.5) * scale) for x in (x_min, x_max) for y in (y_min, y_max)]
        us = [x * self._cos - y * self._sin + shot.shift_x + 0.5 for x, y in corners]
        vs = [x * self._sin + y * self._cos + shot.shift_y + 0.5 for x, y in corners]

        def span(values: list[float]) -> slice:
            first, last = (
                math.floor(min(values) * self.size) - 1,
                math.ceil(max(values) * self.size) + 1,
            )
            return slice(min(max(first, 0), self.size), min(max(last, 0), self.size))

        return span(vs), span(us)


def smooth_step(distance: Plane, softness: float) -> Plane:
    """A soft edge of finite width: 0 below -softness, 1 above +softness, smooth in between."""
    t = np.clip(distance * (0.5 / softness) + 0.5, 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def ellipse(film: Film, center: Point, radii: Point, softness: float, tilt: float = 0.0) -> Plane:
    """A filled ellipse, 1 inside, with an edge about ``softness`` wide; ``tilt`` in radians."""
    (cx, cy), (rx, ry) = center, radii
    out, reach = film.blank(), max(rx, ry) + softness * max(rx, ry) / min(rx, ry)
    window = film.window(cx - reach, cy - reach, cx + reach, cy + reach)
    dx, dy = film.x[window] - cx, film.y[window] - cy
    if tilt:
        c, s = math.cos(tilt), math.sin(tilt)
        dx, dy = dx * c + dy * s, dy * c - dx * s
    radius = np.sqrt(np.square(dx / rx) + np.square(dy / ry))
    out[window] = smooth_step((1.0 - radius) * min(rx, ry), softness)
    return out


def blob(film: Film, center: Point, radii: Point, tilt: float = 0.0) -> Plane:
    """A soft hump: 1 at its center, 0 at and beyond its radii."""
    (cx, cy), (rx, ry) = center, radii
    out, reach = film.blank(), max(rx, ry)
    window = film.window(cx - reach, cy - reach, cx + reach, cy + reach)
    dx, dy = film.x[window] - cx, film.y[window] - cy
    if tilt:
        c, s = math.cos(tilt), math.sin(tilt)
        dx, dy = dx * c + dy * s, dy * c - dx * s
    hump = np.clip(1.0 - np.square(dx / rx) - np.square(dy / ry), 0.0, 1.0)
    out[window] = hump * np.sqrt(hump)
    return out


def tube(film: Film, points: Sequence[Point], radius: float | Sequence[float], softness: float = 0.004) -> Plane:
    """A line through points with a rounded profile; ``radius`` is one value, or one per point for a taper."""
    radii = [radius] * len(points) if isinstance(radius, (int, float)) else list(radius)
    out = film.blank()
    for (x0, y0), (x1, y1), r0, r1 in zip(points, points[1:], radii, radii[1:], strict=False):
        reach = max(r0, r1) + softness
        window = film.window(min(x0, x1) - reach, min(y0, y1) - reach, max(x0, x1) + reach, max(y0, y1) + reach)
        dx, dy, lx, ly = film.x[window] - x0, film.y[window] - y0, x1 - x0, y1 - y0
        along = np.clip((dx * lx + dy * ly) / max(lx * lx + ly * ly, 1e-9), 0.0, 1.0)
        distance = np.sqrt(np.square(dx - along * lx) + np.square(dy - along * ly))
        profile = smooth_step((r0 + along * (r1 - r0)) - distance, softness)
        np.maximum(out[window], profile, out=out[window])
    return out


def curve(points: Sequence[Point], n: int = 9) -> list[Point]:
    """A Bezier curve with the control points ``points``, as ``n`` points."""
    control = np.asarray(points, dtype=np.float64)
    out = []
    for t in np.linspace(0.0, 1.0, n):
        layer = control
        while len(layer) > 1:
            layer = layer[:-1] * (1.0 - t) + layer[1:] * t
        out.append((float(layer[0, 0]), float(layer[0, 1])))
    return out


def expose(attenuation: Plane, shot: Shot) -> npt.NDArray[np.uint8]:
    """An 8-bit gray image of an attenuation of shape (size, size); dense parts are bright.

    Saturation hides bone behind the mediastinum, the beam is weaker toward the corners, and the grain is slightly
    blurred. Every step works pixel by pixel or depends on the shot alone, so a change in one place never shows in
    another.
    """
    size = attenuation.shape[0]
    light = 1.0 - np.exp(np.clip(attenuation, 0.0, None) * (-1.15 * shot.exposure))
    ramp = np.square(np.linspace(-1.0, 1.0, size, dtype=np.float32))
    light *= 1.0 - 0.09 * (ramp[:, None] + ramp[None, :])
    grain = np.random.default_rng(shot.noise_seed).standard_normal((size + 1, size + 1), dtype=np.float32)
    grain = grain[1:, 1:] + 0.5 * (grain[:-1, 1:] + grain[1:, :-1])
    light += grain * np.float32(shot.noise)
    return (np.clip(light * 1.02 + 0.02, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
