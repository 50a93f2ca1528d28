"""The dictionaries: one cache of activations, and one training of all of them per seed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sae_lens_maira.activations.config import WriteConfig
from sae_lens_maira.activations.read import ActivationCache
from sae_lens_maira.activations.write import write_cache
from sae_lens_maira.concepts.dictionaries.settings import DictionariesConfig
from sae_lens_maira.hooked import HookedVisionLanguageModel
from sae_lens_maira.training.multi import train_several


class Dictionary(NamedTuple):
    """A trained dictionary: its name in the configuration, its seed, the SAE, and its folder."""

    name: str
    seed: int
    sae: Any
    path: Path

    @property
    def unit(self) -> str:
        """A name that no other dictionary of the benchmark has."""
        return f"{self.name}-seed{self.seed}"


def open_or_write_cache(config: DictionariesConfig, model: HookedVisionLanguageModel, out: Path) -> ActivationCache:
    """The cache that the configuration names, or one in the benchmark's folder, which is written or finished first."""
    if config.training.activations.cache is not None:
        return ActivationCache.open(config.training.activations.cache)
    path = out / "cache"
    write_cache(model, path, WriteConfig((config.training.hook_name,)))
    return ActivationCache.open(path)


def trained(config: DictionariesConfig, cache: ActivationCache, out: Path) -> Iterator[Dictionary]:
    """Every dictionary with every seed; trainings that are finished already are read from the folder."""
    for seed in config.seeds:
        path = out / "saes" / f"seed{seed}"
        results = train_several(config.training_with(seed, str(cache.path)), path, resume=True)
        for name in config.training.saes:
            yield Dictionary(name, seed, results[name].sae.eval(), results[name].path)
