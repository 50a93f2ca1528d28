"""Specification of the cache on disk, version 1; names and small files of a cache.

::

    cache.json                  what the cache is: ``identity``, which decides every value, and ``about``, for people
    units/000017.safetensors    activations of studies 17 * unit_size up to 18 * unit_size, in the order of the source
    units/000017.json           the unit's record: sha256 and size of its file, counts; a unit is done when it has one
    skipped.jsonl               studies that could not be cached, with the reason and without any of their text
    manifest.json               all records and their totals; a cache is whole once it has one

Tensors of a unit with n tokens; there is no padding:

====================  =============  ==================================================================================
``<hook point>``      (n, d_in)      activations, float32, bfloat16 or float16; one tensor per hook point
``norms.<hook>``      (n,) float32   their Euclidean norms, as stored
``token_ids``         (n,) int32     ids as in rows: the model's, then those of images, then those of studies
``study_index``       (n,) int32     into the source
``position``          (n,) int32     in the compact row; 0 is the study token
``kind``              (n,) uint8     :class:`~sae_lens_maira.data.study.TokenKind`
====================  =============  ==================================================================================

The file's metadata are strings: ``format``, ``version``, ``unit``, ``cache`` (a hash of the identity), ``studies``
(JSON: ``index``, ``study_id``, ``n_tokens`` and the content hash of each of its ``images``) and ``skipped`` (JSON:
``index``, ``study_id``, ``reason``, ``detail``).

1. Every byte depends only on the identity and the studies, not on the time, the host or the order of work. The
   safetensors library orders metadata at random, so :mod:`.unit_file` packs the header of a unit's file itself.
2. Every file is written under a temporary name, synced, and renamed; a unit's record comes after its tensors.
3. Records, ``skipped.jsonl`` and the manifest can all be computed from the units, so units made on different machines
   can be combined by moving or linking their files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sae_lens_maira.errors import CacheError, printable, quoted
from sae_lens_maira.files import from_json, to_json

FORMAT = "sae-lens-maira activations"
VERSION = 2
HEADER_NAME, MANIFEST_NAME, SKIPPED_NAME, UNITS_NAME = "cache.json", "manifest.json", "skipped.jsonl", "units"


@dataclass(frozen=True)
class UnitRecord:
    """A unit's record: the checksum, size and counts of its file."""

    unit: int
    sha256: str
    n_bytes: int
    n_studies: int
    n_skipped: int
    n_tokens: int


def unit_path(cache_path: Path, unit: int) -> Path:
    """Path of a unit's tensors."""
    return cache_path / UNITS_NAME / f"{unit:06d}.safetensors"


def record_path(cache_path: Path, unit: int) -> Path:
    """Path of a unit's record."""
    return cache_path / UNITS_NAME / f"{unit:06d}.json"


def identity_hash(identity: Mapping[str, Any]) -> str:
    """A short hash of a cache's identity."""
    return hashlib.sha256(to_json(identity).encode()).hexdigest()[:16]


def read_record(cache_path: Path, unit: int) -> UnitRecord | None:
    """Read a unit's record; None if the unit is not done.

    Raises:
        CacheError: the record is damaged.
    """
    path = record_path(cache_path, unit)
    return _read(path) if path.is_file() else None


def _read(path: Path) -> UnitRecord:
    try:
        record = UnitRecord(**from_json(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise CacheError(f"'{path}' is damaged ({printable(error)}); delete it and run caching again.") from error
    for name, value in asdict(record).items():
        if not isinstance(value, str if name == "sha256" else int):
            raise CacheError(f"'{path}' is damaged ({name} is {quoted(value)}); delete it and run caching again.")
    return record


def read_json(path: Path) -> dict[str, Any]:
    """Read one of the cache's JSON files.

    Raises:
        FileNotFoundError: there is none.
        CacheError: it is damaged, or of another version.
    """
    try:
        values = from_json(path.read_bytes())
    except FileNotFoundError:
        raise
    except (ValueError, OSError) as error:
        raise CacheError(f"'{path}' is damaged ({printable(error)}); make the cache again.") from error
    if not isinstance(values, dict):
        raise CacheError(f"'{path}' is damaged: it holds no object.")
    check_version(values, path)
    return values


def check_version(values: Mapping[str, Any], path: Path) -> None:
    """Refuse other formats and other versions.

    Raises:
        CacheError: the message names the format or version.
    """
    if values.get("format") != FORMAT:
        raise CacheError(f"'{path}' is no file of a cache of activations.")
    if str(values.get("version")) != str(VERSION):
        raise CacheError(
            f"'{path}' has version {printable(values.get('version'))} of the format, but this package reads version "
            f"{VERSION}."
        )


def remove_unfinished(cache_path: Path, units: Container[int]) -> None:
    """Remove unfinished files of units, left by killed processes."""
    for leftover in (cache_path / UNITS_NAME).glob(".*.tmp"):
        number = leftover.name[1:].split(".")[0]
        if number.isdigit() and int(number) in units:
            leftover.unlink(missing_ok=True)
