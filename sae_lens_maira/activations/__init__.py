"""Activations of whole studies in blocks, from the model or from a cache: whatever reads them takes a stream of blocks.

::

    block            the type that passes between makers and readers
    stream           what readers ask for
    live             activations from the model: the one loop that runs it
    plan             batches of studies of similar length
    decode_ahead     images opened in threads before the model asks for them
    selection        which tokens take part in training
    norms            activation norms by kind of token

    config           what to cache: the mirror of a YAML, and the shard to do
    write            writes a cache, resumable at any moment
    format           the cache on disk: a specification
    header           which model, policy and source a cache belongs to
    unit_file        one unit's file
    manifest         what is done, skipped studies, merging of shards
    verify           checksums
    read             ActivationCache: memory-mapped blocks
    shuffle          which token comes when: a global shuffle by a seed
    provider         batches for SAE-Lens's trainers that remember their place
    export           the form that SAE-Lens reads by itself

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
