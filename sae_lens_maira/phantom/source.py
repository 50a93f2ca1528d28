"""The phantom as a source: study i is built from its seed when it is asked for."""

from __future__ import annotations

import hashlib
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from sae_lens_maira import phantom
from sae_lens_maira.data.source import StudySource
from sae_lens_maira.phantom.generate import PhantomStudy, build, sample_recipe

_GENERATOR = (
    "anatomy concepts contexts devices disease film frontal generate grammar lateral report requests scene wording"
)


class PhantomSource(StudySource):
    """The studies of `phantom.studies(n_studies, seed)`, by index."""

    def __init__(self, n_studies: int, seed: int) -> None:
        description = {"kind": "phantom", "path": None, "options": {"seed": seed}, "n_studies": n_studies}
        super().__init__({**description, "content": generator_hash()})
        self._n_studies = n_studies
        self._seed = seed

    def __len__(self) -> int:
        return self._n_studies

    def study(self, index: int) -> PhantomStudy:
        return _build(self._seed, index)


@cache
def generator_hash() -> str:
    """A hash of the code that decides what phantom studies look and read like."""
    folder = Path(phantom.__file__).parent
    digest = hashlib.sha256()
    for name in _GENERATOR.split():
        (path,) = folder.rglob(f"{name}.py")
        digest.update(path.read_bytes())
    return digest.hexdigest()


@lru_cache(maxsize=4096)
def _build(seed: int, index: int) -> PhantomStudy:
    return build(sample_recipe(np.random.default_rng([seed, index])), study_id=f"phantom-{seed}-{index:06d}")
