"""DICOM radiographs as grey planes, through pydicom (the ``dicom`` extra)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float


def read_dicom(path: Path, name: str) -> Float[np.ndarray, "height width"]:
    """Read a radiograph as it is meant to be displayed: bright bone on a dark background.

    The modality transform, the VOI window or lookup table and the photometric interpretation are applied
    (DICOM PS3.3, C.11.1, C.11.2 and C.7.6.3.1.2); of several frames the first is taken.

    Args:
        path: the file.
        name: what to call the image in errors.

    Raises:
        ImageError: the file is no readable DICOM image.
        PackageMissing: pydicom is not installed.
    """
    from sae_lens_maira.errors import ImageError, PackageMissing
    from sae_lens_maira.maira2.images import LUMA

    try:
        import pydicom
        from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut, convert_color_space
    except ImportError as error:
        raise PackageMissing(f"Reading the {name} needs pydicom: pip install 'sae-lens-maira[dicom]'.") from error
    try:
        dataset: Any = pydicom.dcmread(path)
        pixels = dataset.pixel_array
    except Exception as error:  # pydicom raises many kinds for damaged files
        raise ImageError(f"The {name} cannot be read as DICOM ({error}).") from error
    if int(dataset.get("NumberOfFrames", 1) or 1) > 1:
        pixels = pixels[0]
    photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    if photometric not in {"MONOCHROME1", "MONOCHROME2"}:
        if photometric.startswith("YBR"):
            pixels = convert_color_space(pixels, photometric, "RGB")
        if pixels.ndim != 3 or pixels.shape[-1] != 3:
            raise ImageError(f"The {name} has the unsupported photometric interpretation {photometric}.")
        return np.asarray(pixels, dtype=np.float64) @ LUMA
    plane = np.asarray(apply_voi_lut(apply_modality_lut(pixels, dataset), dataset), dtype=np.float64)
    return plane.max() - plane if photometric == "MONOCHROME1" else plane
