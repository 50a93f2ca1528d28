"""Damaged headers of caches and units end as a header or as one sentence that names the file, never otherwise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_lens_maira.activations.block import Block, BlockStudy, SkippedStudy
from sae_lens_maira.activations.format import FORMAT, HEADER_NAME, MANIFEST_NAME, VERSION, read_record, record_path
from sae_lens_maira.activations.header import read_header
from sae_lens_maira.activations.manifest import make_manifest
from sae_lens_maira.activations.read import ActivationCache
from sae_lens_maira.activations.unit_file import MappedUnit, write_unit
from sae_lens_maira.errors import CacheError
from sae_lens_maira.files import to_json
from tests.damage import outcomes

HOOK_NAME = "blocks.2.hook_resid_post"
IDENTITY = {"n_studies": 3, "unit_size": 3, "d_in": 4, "context_size": None, "dtype": "float32"}
HEADER = {
    "format": FORMAT,
    "version": VERSION,
    "identity": {**IDENTITY, "hook_names": [HOOK_NAME], "source": {"kind": "listed"}},
    "about": {"model": "none"},
}


@pytest.fixture
def cache(tmp_path):
    """A cache of one unit with two studies of three tokens, and a study that was skipped."""
    activations = torch.arange(24, dtype=torch.float32).view(6, 4)
    block = Block(
        {HOOK_NAME: activations},
        {HOOK_NAME: activations.norm(dim=1)},
        torch.arange(6),
        torch.tensor([0, 0, 0, 2, 2, 2]),
        torch.arange(6) % 3,
        torch.full((6,), 6, dtype=torch.uint8),
        [BlockStudy(0, "a", 3, {"frontal": "0" * 64}), BlockStudy(2, "c", 3, {"frontal": "1" * 64})],
        [SkippedStudy(1, "b", "no findings")],
    )
    (tmp_path / HEADER_NAME).write_text(to_json(HEADER))
    (tmp_path / MANIFEST_NAME).write_text(to_json(make_manifest([write_unit(tmp_path, 0, "cache", block)])))
    return tmp_path


READERS: dict[str, Callable[[Path], Any]] = {
    HEADER_NAME: lambda path: read_header(path.parent),
    MANIFEST_NAME: lambda path: ActivationCache.open(path.parent),
    "units/000000.safetensors": lambda path: MappedUnit(path).block([HOOK_NAME]),
    "units/000000.json": lambda path: read_record(path.parents[1], 0),
}


@pytest.mark.parametrize("name", READERS)
def test_damaged_headers_end_as_a_header_or_as_a_sentence(cache, name):
    READERS[name](cache / name)
    assert outcomes(READERS[name], cache / name, seed=5, n=60)["sentence"] > 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("dtype", value) for value in ("float8", "__name__", 3, ["float32"])),
        *(("hook_names", value) for value in ("blocks", [], [1], None)),
        *((name, value) for name in ("d_in", "n_studies", "unit_size") for value in (0, -1, "4", 1.5, None, True)),
        ("source", []),
    ],
)
def test_a_header_of_odd_types_is_one_sentence(tmp_path, name, value):
    (tmp_path / HEADER_NAME).write_text(to_json({**HEADER, "identity": {**HEADER["identity"], name: value}}))
    with pytest.raises(CacheError, match=rf"cache\.json' is damaged: {name} is '.*'; make the cache again\.$"):
        ActivationCache.open(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"), [("n_tokens", '{"n_tokens": "6", "n_studies": 2, "units": []'), ("units", '{"units": 3')]
)
def test_a_manifest_of_odd_types_is_one_sentence(cache, name, text):
    (cache / MANIFEST_NAME).write_text(f'{text}, "format": "{FORMAT}", "version": {VERSION}}}')
    with pytest.raises(CacheError, match=r"manifest\.json' is damaged; delete it and run"):
        ActivationCache.open(cache)


def test_a_record_of_odd_types_is_one_sentence(cache):
    path = record_path(cache, 0)
    path.write_text(path.read_text().replace('"n_tokens": 6', '"n_tokens": "6"'))
    with pytest.raises(CacheError, match=r"000000\.json' is damaged \(n_tokens is '6'\); delete it and run caching"):
        read_record(cache, 0)
