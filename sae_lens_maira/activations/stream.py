"""What readers of activations need: blocks in the order of the source, from the model or from a cache.

:class:`~sae_lens_maira.activations.live.LiveActivations` runs the model, and
:class:`~sae_lens_maira.activations.read.ActivationCache` reads a cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

from sae_lens_maira.activations.block import Block


@runtime_checkable
class ActivationStream(Protocol):
    """Blocks of activations in the order of the source; every iteration starts from the first study."""

    @property
    def hook_names(self) -> Sequence[str]:
        """Hook points whose activations each block holds."""
        ...

    def __iter__(self) -> Iterator[Block]: ...


def until_study(blocks: Iterable[Block], n_studies: int) -> Iterator[Block]:
    """The first blocks of a stream, up to the one with the last of the first ``n_studies`` studies."""
    for block in blocks:
        if block.n_tokens and int(block.study_index[0]) >= n_studies:
            return
        yield block
