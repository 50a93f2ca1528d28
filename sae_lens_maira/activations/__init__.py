"""Cached activations: the model runs once, and everything after it reads.

::

    settings          what to cache: the mirror of a YAML, and the shard to do
    format            the cache on disk: a specification, and writing and reading of its files
    identity          which model, policy and source a cache belongs to
    batching          units of studies, and batches of similar length
    decode_ahead      images opened in threads before the model asks for them
    unit, write       running the model over units, resumable at any moment
    whole             the manifest, skipped studies, merging of shards
    verify            checksums
    read              ActivationCache: memory-mapped blocks in storage order
    order             which token comes when: a global shuffle by a seed
    provider          batches for SAE-Lens's trainers that remember their place
    sae_lens_export   the form that SAE-Lens reads by itself

>>> from sae_lens_maira.activations import ActivationCache
>>> cache = ActivationCache.open("out/cache")  # doctest: +SKIP
>>> for block in cache.blocks("blocks.15.hook_resid_post"):  # doctest: +SKIP
...     block.activations, block.token_ids, block.study_index, block.position, block.kind
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_lens_maira.errors import CacheError
from sae_lens_maira.lazy import lazy_names

if TYPE_CHECKING:
    from sae_lens_maira.activations.read import ActivationCache, Block
    from sae_lens_maira.activations.write import write_cache
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "ActivationCache": "sae_lens_maira.activations.read",
            "Block": "sae_lens_maira.activations.read",
            "write_cache": "sae_lens_maira.activations.write",
        },
    )

__all__ = ["ActivationCache", "Block", "CacheError", "write_cache"]
