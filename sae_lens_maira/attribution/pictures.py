"""Maps as pictures to lay over an image: red where the feature is raised, transparent where it is not."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from jaxtyping import Float

from sae_lens_maira.files import replacing

_SIZE = 256
_COLOR = (220, 30, 30)


def write_picture(path: Path, values: Float[np.ndarray, " n_patches"], side: int) -> None:
    """Write a map as a PNG with an alpha channel; nothing of the image is in it.

    Args:
        path: the file; its folder is made.
        values: the map, row by row.
        side: patches per row.
    """
    from PIL import Image

    heat = np.clip(values, 0, None).reshape(side, side)
    alpha = np.uint8(np.round(200 * heat / max(float(heat.max()), 1e-12)))
    scaled = Image.fromarray(alpha, mode=None).resize((_SIZE, _SIZE), Image.Resampling.BILINEAR)
    picture = Image.new("RGBA", (_SIZE, _SIZE), (*_COLOR, 0))
    picture.putalpha(scaled)
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(buffer.getvalue())
