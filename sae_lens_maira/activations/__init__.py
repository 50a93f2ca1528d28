"""Activations of whole studies, as a stream of blocks that comes from the model or from a cache.

::

    block            activations of some studies, as they are passed to readers
    stream           the protocol that readers use: an iterable of blocks
    live             runs the model over studies and yields blocks
    plan             batches of studies of similar length
    decode_ahead     opens and processes images in threads, ahead of the model
    selection        which tokens are trained on
    norms            activation norms by kind of token

    config           settings of a cache, as in its YAML file, and shards
    write            writes a cache; an interrupted run can be resumed
    format           specification of the cache on disk
    header           which model, policy and source a cache belongs to
    unit_file        reads and writes the file of one unit
    manifest         finished units, skipped studies, merging of shards
    verify           checks every file against its checksum
    read             ActivationCache: memory-mapped blocks
    shuffle          the order of tokens: a seeded shuffle of the whole cache
    provider         batches for SAE-Lens's trainers, resumable
    export           the format that SAE-Lens reads itself

>>> from sae_lens_maira.activations import ActivationCache
>>> cache = ActivationCache.open("out/cache")  # doctest: +SKIP
>>> for block in cache:  # doctest: +SKIP
...     block.activations["blocks.15.hook_resid_post"], block.token_ids, block.study_index, block.position, block.kind
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_lens_maira.errors import CacheError
from sae_lens_maira.lazy import lazy_names

if TYPE_CHECKING:
    from sae_lens_maira.activations.block import Block
    from sae_lens_maira.activations.read import ActivationCache
    from sae_lens_maira.activations.stream import ActivationStream
    from sae_lens_maira.activations.write import write_cache
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "ActivationCache": "sae_lens_maira.activations.read",
            "ActivationStream": "sae_lens_maira.activations.stream",
            "Block": "sae_lens_maira.activations.block",
            "write_cache": "sae_lens_maira.activations.write",
        },
    )

__all__ = ["ActivationCache", "ActivationStream", "Block", "CacheError", "write_cache"]
