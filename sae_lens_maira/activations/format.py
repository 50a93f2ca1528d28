"""The cache on disk, version 2.

::

    cache.json                  what the cache is: `identity`, which decides every value, and `about`, for people
    units/000017.safetensors    activations of studies 17 * unit_size up to 18 * unit_size, in the order of the source
    units/000017.json           the unit's record: sha256 and size of its file, counts; a unit is done when it has one
    skipped.jsonl               studies that could not be cached, with the reason and without any of their text
    manifest.json               all records and their totals; a cache is whole when it has one

Tensors of a unit with n tokens, padding never among them:

====================  =============  ==================================================================================
``<hook point>``      (n, d_in)      activations, float32, bfloat16 or float16; one tensor a hook point
``norms.<hook>``      (n,) float32   their Euclidean norms, as stored
``token_ids``         (n,) int32     ids as in rows: the model's, then those of images, then those of studies
``study_index``       (n,) int32     into the source
``position``          (n,) int32     in the compact row; 0 is the study token
``kind``              (n,) uint8     :class:`~sae_lens_maira.maira2.prompts.TokenKind`
====================  =============  ==================================================================================

The file's metadata are strings: ``format``, ``version``, ``unit``, ``cache`` (a hash of the identity), ``studies``
(JSON: ``index``, ``study_id``, ``n_tokens`` and the content hash of each of its ``images``) and ``skipped`` (JSON:
``index``, ``study_id``, ``reason``, ``detail``).

1. Every byte is a function of the identity and the studies: no time, no host, no order of work.
2. Every file is written under a temporary name, synced, and renamed; a unit's record comes after its tensors.
3. Records, ``skipped.jsonl`` and the manifest can all be computed from the units, so units made anywhere can be put
   together by moving or linking their files.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from sae_lens_maira.errors import CacheError
from sae_lens_maira.files import replacing, to_json, write_text

FORMAT = "sae-lens-maira activations"
VERSION = 2
HEADER_NAME, MANIFEST_NAME, SKIPPED_NAME, UNITS_NAME = "cache.json", "manifest.json", "skipped.jsonl", "units"

NORMS_PREFIX = "norms."
SAFETENSORS_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint8: "U8",
}
_DTYPES = {name: dtype for dtype, name in SAFETENSORS_NAMES.items()}
_ALIGNMENT = 64
_Record = TypeVar("_Record")


@dataclass(frozen=True)
class UnitRecord:
    """What a unit's file holds."""

    unit: int
    sha256: str
    n_bytes: int
    n_studies: int
    n_skipped: int
    n_tokens: int


@dataclass(frozen=True)
class CachedStudy:
    """A study of a unit; ``images`` maps the names of its images to hashes of their pixels."""

    index: int
    study_id: str
    n_tokens: int
    images: dict[str, str]


@dataclass(frozen=True)
class SkippedStudy:
    """A study that could not be cached. ``detail`` never holds report text."""

    index: int
    study_id: str | None
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class UnitContents:
    """What the header of a unit's file says.

    Args:
        cache: hash of the identity of the cache that the unit belongs to.
        studies: in the order of their tokens.
        skipped: studies of the unit that have none.
        tensors: dtype, shape, and offset of the first byte in the file.
    """

    unit: int
    cache: str
    studies: list[CachedStudy]
    skipped: list[SkippedStudy]
    tensors: dict[str, tuple[torch.dtype, tuple[int, ...], int]]

    @property
    def n_tokens(self) -> int:
        """Tokens of all studies."""
        return sum(study.n_tokens for study in self.studies)


def unit_path(cache_path: Path, unit: int) -> Path:
    """A unit's tensors."""
    return cache_path / UNITS_NAME / f"{unit:06d}.safetensors"


def record_path(cache_path: Path, unit: int) -> Path:
    """A unit's record."""
    return cache_path / UNITS_NAME / f"{unit:06d}.json"


def identity_hash(identity: Mapping[str, Any]) -> str:
    """A short name of a cache's identity."""
    return hashlib.sha256(to_json(identity).encode()).hexdigest()[:16]


def write_unit(
    cache_path: Path,
    unit: int,
    cache: str,
    tensors: Mapping[str, Sequence[Tensor]],
    studies: Sequence[CachedStudy],
    skipped: Sequence[SkippedStudy],
) -> UnitRecord:
    """Write a unit's file and its record.

    Args:
        cache_path: the cache's folder.
        unit: its number.
        cache: hash of the cache's identity.
        tensors: each as its parts along the first dimension, at least one.
        studies: whose tokens the tensors hold.
        skipped: the unit's other studies.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "unit": str(unit),
        "cache": cache,
        "studies": json.dumps([asdict(study) for study in studies], sort_keys=True),
        "skipped": json.dumps([asdict(study) for study in skipped], sort_keys=True),
    }
    # Wide types first, so that each tensor starts at a multiple of its items' size.
    names = sorted(tensors, key=lambda name: (-tensors[name][0].element_size(), name))
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name in names:
        first = tensors[name][0]
        shape = [sum(len(part) for part in tensors[name]), *first.shape[1:]]
        n_bytes = sum(part.numel() for part in tensors[name]) * first.element_size()
        header[name] = {
            "dtype": SAFETENSORS_NAMES[first.dtype],
            "shape": shape,
            "data_offsets": [offset, offset + n_bytes],
        }
        offset += n_bytes
    text = json.dumps(header, sort_keys=True).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    digest = hashlib.sha256()
    path = unit_path(cache_path, unit)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        for piece in _pieces(text, tensors, names):
            digest.update(piece)
            file.write(piece)
    record = UnitRecord(
        unit, digest.hexdigest(), 8 + len(text) + offset, len(studies), len(skipped), sum(s.n_tokens for s in studies)
    )
    write_text(record_path(cache_path, unit), to_json(asdict(record)))
    return record


def _pieces(header: bytes, tensors: Mapping[str, Sequence[Tensor]], names: Sequence[str]) -> Iterator[Any]:
    yield struct.pack("<Q", len(header))
    yield header
    for name in names:
        for part in tensors[name]:
            if part.numel():
                values: Any = part.contiguous().reshape(-1).view(torch.uint8).numpy()
                yield memoryview(values)


def read_contents(path: Path) -> UnitContents:
    """The header of a unit's file.

    Raises:
        CacheError: it is no such file.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, path.stat().st_size)))
        metadata = header.pop("__metadata__")
        check_version(metadata, path)
        tensors = {
            name: (_DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
            for name, entry in header.items()
        }
        return UnitContents(
            int(metadata["unit"]),
            metadata["cache"],
            [CachedStudy(**study) for study in json.loads(metadata["studies"])],
            [SkippedStudy(**study) for study in json.loads(metadata["skipped"])],
            tensors,
        )
    except CacheError:
        raise
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise CacheError(
            f"'{path}' is missing or damaged ({error}); delete it and its .json and run caching again."
        ) from error


def read_record(cache_path: Path, unit: int) -> UnitRecord | None:
    """A unit's record; None if the unit is not done.

    Raises:
        CacheError: the record is damaged.
    """
    path = record_path(cache_path, unit)
    return _read(path, UnitRecord) if path.is_file() else None


def _read(path: Path, kind: type[_Record]) -> _Record:
    try:
        return kind(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise CacheError(f"'{path}' is damaged ({error}); delete it and run caching again.") from error


def read_json(path: Path) -> dict[str, Any]:
    """One of the cache's own JSON files.

    Raises:
        FileNotFoundError: there is none.
        CacheError: it is damaged, or of another version.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CacheError(f"'{path}' is damaged ({error}).") from error
    if not isinstance(values, dict):
        raise CacheError(f"'{path}' is damaged: it holds no object.")
    check_version(values, path)
    return values


def check_version(values: Mapping[str, Any], path: Path) -> None:
    """Refuse other formats and later versions.

    Raises:
        CacheError: naming format or version.
    """
    if values.get("format") != FORMAT:
        raise CacheError(f"'{path}' is no file of a cache of activations.")
    if str(values.get("version")) != str(VERSION):
        raise CacheError(
            f"'{path}' has version {values.get('version')} of the format, but this package reads version {VERSION}."
        )


def remove_unfinished(cache_path: Path, units: Container[int]) -> None:
    """Remove what killed processes left of units' files."""
    for leftover in (cache_path / UNITS_NAME).glob(".*.tmp"):
        number = leftover.name[1:].split(".")[0]
        if number.isdigit() and int(number) in units:
            leftover.unlink(missing_ok=True)
