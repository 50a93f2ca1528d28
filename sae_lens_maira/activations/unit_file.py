"""One unit's file: a block written whole or not at all, and read through a memory map."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_lens_maira.activations.block import Block, BlockStudy, SkippedStudy
from sae_lens_maira.activations.format import FORMAT, VERSION, UnitRecord, check_version, record_path, unit_path
from sae_lens_maira.errors import CacheError, printable
from sae_lens_maira.files import from_json, replacing, to_json, write_text

NORMS_PREFIX = "norms."
_SAFETENSORS_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint8: "U8",
}
_DTYPES = {name: dtype for dtype, name in _SAFETENSORS_NAMES.items()}
_ALIGNMENT = 64


@dataclass(frozen=True)
class UnitContents:
    """The header of a unit's file.

    Args:
        unit: the unit's number.
        cache: hash of the identity of the cache that the unit belongs to.
        studies: in the order of their tokens.
        skipped: studies of the unit that have no activations.
        tensors: dtype, shape, and offset of the first byte in the file.
    """

    unit: int
    cache: str
    studies: list[BlockStudy]
    skipped: list[SkippedStudy]
    tensors: dict[str, tuple[torch.dtype, tuple[int, ...], int]]

    @property
    def n_tokens(self) -> int:
        """Number of tokens of all studies."""
        return sum(study.n_tokens for study in self.studies)


def write_unit(cache_path: Path, unit: int, cache: str, block: Block) -> UnitRecord:
    """Write a unit's file and its record.

    Args:
        cache_path: the cache's folder.
        unit: the unit's number.
        cache: hash of the cache's identity.
        block: the unit's activations, in the dtype in which they are stored.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    tensors = _tensors(block)
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "unit": str(unit),
        "cache": cache,
        "studies": json.dumps([asdict(study) for study in block.studies], sort_keys=True),
        "skipped": json.dumps([asdict(study) for study in block.skipped], sort_keys=True),
    }
    # Wide types first, so that each tensor starts at a multiple of its element size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name in names:
        tensor = tensors[name]
        n_bytes = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _SAFETENSORS_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + n_bytes],
        }
        offset += n_bytes
    text = json.dumps(header, sort_keys=True).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    digest = hashlib.sha256()
    path = unit_path(cache_path, unit)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        for piece in _pieces(text, [tensors[name] for name in names]):
            digest.update(piece)
            file.write(piece)
    n_bytes = 8 + len(text) + offset
    record = UnitRecord(unit, digest.hexdigest(), n_bytes, len(block.studies), len(block.skipped), block.n_tokens)
    write_text(record_path(cache_path, unit), to_json(asdict(record)))
    return record


def _tensors(block: Block) -> dict[str, Tensor]:
    return {
        **block.activations,
        **{NORMS_PREFIX + name: values for name, values in block.norms.items()},
        **{name: getattr(block, name).to(torch.int32) for name in ("token_ids", "study_index", "position")},
        "kind": block.kind,
    }


def _pieces(header: bytes, tensors: Sequence[Tensor]) -> Iterator[Any]:
    yield struct.pack("<Q", len(header))
    yield header
    for tensor in tensors:
        if tensor.numel():
            values: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
            yield memoryview(values)


def read_contents(path: Path) -> UnitContents:
    """Read the header of a unit's file.

    Raises:
        CacheError: the file is missing or damaged.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            size = path.stat().st_size
            header = from_json(file.read(min(length, size)))
        metadata = header.pop("__metadata__")
        check_version(metadata, path)
        tensors = {name: _read_entry(entry, 8 + length) for name, entry in header.items()}
        studies = [BlockStudy(**study) for study in from_json(metadata["studies"])]
        skipped = [SkippedStudy(**study) for study in from_json(metadata["skipped"])]
        if not all(isinstance(number, int) for study in studies for number in (study.index, study.n_tokens)):
            raise ValueError("a study has no number")
        return UnitContents(int(metadata["unit"]), metadata["cache"], studies, skipped, tensors)
    except CacheError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise CacheError(
            f"'{path}' is missing or damaged ({printable(error)}); delete it and its .json and run caching again."
        ) from error


def _read_entry(entry: dict[str, Any], start: int) -> tuple[torch.dtype, tuple[int, ...], int]:
    dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
    first, stop = entry["data_offsets"]
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, first, stop)):
        raise ValueError("a tensor's shape or place is no whole number")
    if stop - first != math.prod(shape) * dtype.itemsize:
        raise ValueError("a tensor's shape does not fit its place")
    return dtype, shape, start + first


class MappedUnit:
    """A unit's tensors in memory maps; pages are read on first access, and no file stays open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.contents: UnitContents = read_contents(path)

    def block(self, hook_names: Sequence[str]) -> Block:
        """The unit's tokens, with their activations at some of its hook points.

        Raises:
            CacheError: the file lacks a tensor, or is cut short.
        """
        return Block(
            activations={name: self.tensor(name) for name in hook_names},
            norms={name: self.tensor(NORMS_PREFIX + name) for name in hook_names},
            token_ids=self.tensor("token_ids").long(),
            study_index=self.tensor("study_index").long(),
            position=self.tensor("position").long(),
            kind=self.tensor("kind"),
            studies=self.contents.studies,
            skipped=self.contents.skipped,
        )

    def tensor(self, name: str) -> Tensor:
        """A tensor, as stored. It must not be modified.

        Raises:
            CacheError: the file has no such tensor, or is cut short.
        """
        if name not in self.contents.tensors:
            raise CacheError(f"'{self.path}' has no tensor '{name}'; the cache is damaged.")
        dtype, shape, offset = self.contents.tensors[name]
        n_bytes = torch.Size(shape).numel() * dtype.itemsize
        if n_bytes == 0:
            return torch.empty(shape, dtype=dtype)
        if offset + n_bytes > len(self._bytes):
            raise CacheError(f"'{self.path}' is cut short; delete it and its .json and run caching again.")
        return self._bytes[offset : offset + n_bytes].view(dtype).view(shape)

    def offset(self, name: str) -> int:
        """Offset of a tensor's first byte in the file."""
        return self.contents.tensors[name][2]

    @cached_property
    def _bytes(self) -> Tensor:
        size = self.path.stat().st_size
        storage: Any = torch.UntypedStorage.from_file(str(self.path), shared=False, nbytes=size)
        return torch.empty(0, dtype=torch.uint8).set_(storage, 0, (size,), (1,))
