"""Reading a cache: memory-mapped blocks in storage order, one a unit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from sae_lens_maira.activations.format import (
    MANIFEST_NAME,
    NORMS_PREFIX,
    CachedStudy,
    UnitContents,
    identity_hash,
    read_contents,
    read_json,
    unit_path,
)
from sae_lens_maira.activations.header import read_header
from sae_lens_maira.activations.manifest import count_units, done_units
from sae_lens_maira.errors import CacheError


class MappedUnit:
    """A unit's tensors in memory maps; pages are read when they are touched, and no file stays open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.contents: UnitContents = read_contents(path)

    def tensor(self, name: str) -> Tensor:
        """A tensor, as stored. It must not be written to.

        Raises:
            CacheError: the file has no such tensor, or is too short.
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
        """Of a tensor's first byte in the file."""
        return self.contents.tensors[name][2]

    @cached_property
    def _bytes(self) -> Tensor:
        size = self.path.stat().st_size
        storage: Any = torch.UntypedStorage.from_file(str(self.path), shared=False, nbytes=size)
        return torch.empty(0, dtype=torch.uint8).set_(storage, 0, (size,), (1,))


@dataclass(frozen=True)
class Block:
    """Tokens of whole studies at one hook point, in storage order; padding is not among them.

    Args:
        activations: memory mapped, in the stored dtype; not to be written to.
        norms: Euclidean norms of the activations.
        token_ids: as in rows.
        study_index: into the source.
        position: in the compact row; 0 is the study token.
        kind: :class:`~sae_lens_maira.maira2.prompts.TokenKind` values.
        studies: ids, token counts and content hashes of images.
    """

    activations: Float[Tensor, "n_tokens d_in"]
    norms: Float[Tensor, " n_tokens"]
    token_ids: Int[Tensor, " n_tokens"]
    study_index: Int[Tensor, " n_tokens"]
    position: Int[Tensor, " n_tokens"]
    kind: UInt8[Tensor, " n_tokens"]
    studies: list[CachedStudy]


class ActivationCache:
    """A whole cache; open one with :meth:`open`.

    Attributes:
        path: its folder.
        identity: what decides its values; see :func:`~sae_lens_maira.activations.header.make_header`.
        description: the same with what is told beside it: model, revision, source.
        hook_names: hook points that it holds.
        d_in: width of its activations.
        n_tokens, n_studies: what it holds; skipped studies are not counted.
    """

    def __init__(self, path: Path, header: dict[str, Any], manifest: dict[str, Any]) -> None:
        self.path = path
        self.identity: dict[str, Any] = header["identity"]
        self.description: dict[str, Any] = {**header["about"], **self.identity}
        self.hook_names: tuple[str, ...] = tuple(self.identity["hook_names"])
        self.d_in: int = self.identity["d_in"]
        self.dtype: torch.dtype = getattr(torch, self.identity["dtype"])
        self.n_tokens: int = manifest["n_tokens"]
        self.n_studies: int = manifest["n_studies"]
        self.n_units: int = len(manifest["units"])
        self._cache = identity_hash(self.identity)

    @classmethod
    def open(cls, path: Path | str) -> ActivationCache:
        """Open a whole cache; its checksums are left to :func:`~sae_lens_maira.activations.verify.verify_cache`.

        Raises:
            FileNotFoundError: there is no cache.
            CacheError: it is damaged, or units are missing.
        """
        path = Path(path)
        header = read_header(path)
        try:
            manifest = read_json(path / MANIFEST_NAME)
        except FileNotFoundError:
            n_units = count_units(header["identity"])
            n_done = len(done_units(path, range(n_units)))
            raise CacheError(
                f"The cache '{path}' is not finished: {n_done} of {n_units} units are done; run `sae-lens-maira cache` "
                "again, or merge its shards."
            ) from None
        return cls(path, header, manifest)

    def units(self) -> Iterator[MappedUnit]:
        """All units that hold tokens, in order.

        Raises:
            CacheError: a unit is missing or damaged, or of another cache.
        """
        for number in range(self.n_units):
            unit = MappedUnit(unit_path(self.path, number))
            if unit.contents.cache != self._cache or unit.contents.unit != number:
                raise CacheError(
                    f"'{unit.path}' belongs to another cache; delete it and its .json and run caching again."
                )
            if unit.contents.n_tokens:
                yield unit

    def blocks(self, hook_name: str) -> Iterator[Block]:
        """Tokens in storage order, whole studies at a time.

        Raises:
            CacheError: the cache has no such hook point, or a unit is damaged.
        """
        self.check_hook_name(hook_name)
        for unit in self.units():
            yield Block(
                unit.tensor(hook_name),
                unit.tensor(NORMS_PREFIX + hook_name),
                unit.tensor("token_ids").long(),
                unit.tensor("study_index").long(),
                unit.tensor("position").long(),
                unit.tensor("kind"),
                unit.contents.studies,
            )

    def check_hook_name(self, hook_name: str) -> None:
        """Refuse a hook point that was not cached.

        Raises:
            CacheError: naming those that were.
        """
        if hook_name not in self.hook_names:
            raise CacheError(f"The cache '{self.path}' has no '{hook_name}'; it has {', '.join(self.hook_names)}.")
