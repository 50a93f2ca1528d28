"""The phantom as a source: study i is built from its seed when it is asked for."""

from __future__ import annotations

from functools import lru_cache

from sae_lens_maira.data.source import StudySource
from sae_lens_maira.phantom.generate import GENERATOR_VERSION, PhantomStudy, sampled_study


class PhantomSource(StudySource):
    """The studies of ``phantom.studies(n_studies, seed)``, by index."""

    def __init__(self, n_studies: int, seed: int) -> None:
        description = {"kind": "phantom", "path": None, "options": {"seed": seed}, "n_studies": n_studies}
        super().__init__({**description, "content": f"generator {GENERATOR_VERSION}"})
        self._n_studies = n_studies
        self._seed = seed

    def __len__(self) -> int:
        return self._n_studies

    def study(self, index: int) -> PhantomStudy:
        return _cached_study(self._seed, index)


_cached_study = lru_cache(maxsize=4096)(sampled_study)
