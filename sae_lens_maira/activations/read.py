"""Reading a cache: memory-mapped blocks in the order of the source, one per unit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sae_lens_maira.activations.block import Block
from sae_lens_maira.activations.format import MANIFEST_NAME, identity_hash, read_json, unit_path
from sae_lens_maira.activations.header import read_header
from sae_lens_maira.activations.manifest import count_units, done_units
from sae_lens_maira.activations.unit_file import MappedUnit
from sae_lens_maira.errors import CacheError


class ActivationCache:
    """A whole cache, as an :class:`~.stream.ActivationStream`; open one with :meth:`open`.

    Attributes:
        path: its folder.
        identity: what determines its values; see :func:`~sae_lens_maira.activations.header.make_header`.
        description: the identity, and notes for people: model, revision, source.
        hook_names: hook points that it holds.
        d_in: width of its activations.
        n_tokens, n_studies: number of tokens and studies; skipped studies are not counted.
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
        """Open a whole cache; :func:`~sae_lens_maira.activations.verify.verify_cache` checks its checksums.

        Raises:
            FileNotFoundError: there is no cache.
            CacheError: the cache is damaged, or units are missing.
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
        counts = [manifest.get(name) for name in ("n_tokens", "n_studies")]
        if not all(isinstance(count, int) for count in counts) or not isinstance(manifest.get("units"), list):
            raise CacheError(f"'{path / MANIFEST_NAME}' is damaged; delete it and run `sae-lens-maira cache` again.")
        return cls(path, header, manifest)

    def units(self) -> Iterator[MappedUnit]:
        """All units that hold tokens, in order.

        Raises:
            CacheError: a unit is missing or damaged, or belongs to another cache.
        """
        for number in range(self.n_units):
            unit = MappedUnit(unit_path(self.path, number))
            if unit.contents.cache != self._cache or unit.contents.unit != number:
                raise CacheError(
                    f"'{unit.path}' belongs to another cache; delete it and its .json and run caching again."
                )
            if unit.contents.n_tokens:
                yield unit

    def blocks(self, *hook_names: str) -> Iterator[Block]:
        """Blocks with the activations at some hook points; at all of them if none is named.

        Raises:
            CacheError: the cache has no such hook point, or a unit is damaged.
        """
        for name in hook_names:
            self.check_hook_name(name)
        for unit in self.units():
            yield unit.block(hook_names or self.hook_names)

    def __iter__(self) -> Iterator[Block]:
        return self.blocks()

    def check_hook_name(self, hook_name: str) -> None:
        """Refuse a hook point that was not cached.

        Raises:
            CacheError: the message names those that were cached.
        """
        if hook_name not in self.hook_names:
            raise CacheError(f"The cache '{self.path}' has no '{hook_name}'; it has {', '.join(self.hook_names)}.")
