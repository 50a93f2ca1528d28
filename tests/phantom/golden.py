"""What this version of the phantom's generator makes, kept to be compared with.

Texts, labels and boxes are kept as a hash. Processors round a few pixels differently, so images are kept as means of
blocks, one image per row of ``golden.png``, and compared within a gray level.

After a change of the generator, raise GENERATOR_VERSION and run ``python -m tests.phantom.golden``.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from sae_lens_maira import phantom
from sae_lens_maira.phantom.generate import GENERATOR_VERSION

HASH_PATH, IMAGE_PATH = (Path(__file__).parent / f"golden.{ending}" for ending in ("json", "png"))
BLOCK = 8


def golden_studies() -> list[phantom.PhantomStudy]:
    """Sampled studies, and every visible concept in each of its extents and, where it can be, faint."""
    found = list(phantom.studies(10, seed=5))
    for name in phantom.VISIBLE:
        concept = phantom.CONCEPTS[name]
        looks = [phantom.Appearance(extent) for extent in concept.extents]
        looks += [phantom.Appearance(concept.extents[0], subtle=True)] if concept.subtle else []
        found += [phantom.render({name: look}, anatomy_seed=3, seed=k) for k, look in enumerate(looks)]
    return found


def texts_hash(studies: list[phantom.PhantomStudy]) -> str:
    """Hash of everything but the pixels."""
    digest = hashlib.sha256()
    for study in studies:
        sentences = [[s.start, s.end, s.labels, s.boxes] for s in study.sentences]
        known = [study.study_id, study.patient_id, study.view, str(study.acquired_at), study.labels, sentences]
        digest.update(json.dumps([known, study.texts, study.grounded_findings], sort_keys=True).encode())
    return digest.hexdigest()


def block_means(studies: list[phantom.PhantomStudy]) -> Float[np.ndarray, "n_images n_blocks"]:
    """Mean gray level of every block of every image."""
    images = [np.asarray(image.open(), np.float64) for study in studies for image in study.images.values()]
    n = phantom.IMAGE_SIZE // BLOCK
    return np.stack(images).reshape(len(images), n, BLOCK, n, BLOCK).mean(axis=(2, 4)).reshape(len(images), n * n)


def golden_means() -> Float[np.ndarray, "n_images n_blocks"]:
    """The means that were kept."""
    with Image.open(IMAGE_PATH) as image:
        return np.asarray(image, np.float64)


def main() -> None:
    """Keep what the generator makes now."""
    studies = golden_studies()
    kept = {"generator_version": GENERATOR_VERSION, "texts": texts_hash(studies)}
    HASH_PATH.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    Image.fromarray(block_means(studies).round().astype(np.uint8)).save(IMAGE_PATH, optimize=True)
    sys.stdout.write(f"{HASH_PATH.name}, {IMAGE_PATH.name}: generator {GENERATOR_VERSION}\n")


if __name__ == "__main__":
    main()
