"""A tiny model, a source whose studies can be broken, and a whole cache of it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from sae_lens_maira import phantom
from sae_lens_maira.activations.config import WriteConfig
from sae_lens_maira.activations.write import write_cache
from sae_lens_maira.data.study import Study
from sae_lens_maira.hooked import HookedMaira2
from tests.conftest import CHECKPOINT_PATH

HOOKS = ("blocks.0.hook_resid_post", "blocks.1.hook_mlp_out")
N_STUDIES = 22


@dataclass(frozen=True)
class BrokenImage:
    """An image file that was cut short."""

    def open(self) -> Image.Image:
        raise OSError("image file is truncated")


def make_studies(n: int = N_STUDIES, seed: int = 3) -> list[Study]:
    return list(phantom.studies(n, seed=seed))


def break_images(studies: Sequence[Study], indices: Sequence[int]) -> list[Study]:
    return [replace(study, frontal=BrokenImage()) if i in indices else study for i, study in enumerate(studies)]


def make_model(studies: Sequence[Study], **kwargs) -> HookedMaira2:
    return HookedMaira2.from_pretrained(CHECKPOINT_PATH, studies, **{"dtype": torch.float32, **kwargs})


def make_settings(**kwargs) -> WriteConfig:
    return WriteConfig(**{"hook_names": HOOKS, "dtype": "float32", "unit_size": 5, "max_batch_tokens": 1024, **kwargs})


def tree(path: Path) -> dict[str, str]:
    """Every file of a folder, by its hash."""
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


@pytest.fixture(scope="session")
def cached_model() -> HookedMaira2:
    return make_model(make_studies())


@pytest.fixture(scope="session")
def cache_path(tmp_path_factory, cached_model) -> Path:
    """A whole cache. Tests must not change it."""
    path = tmp_path_factory.mktemp("caches") / "whole"
    write_cache(cached_model, path, make_settings(), show_progress=False)
    return path
