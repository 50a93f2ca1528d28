"""Activations of some studies at one hook point, recorded from any stream of blocks so that they can be read again."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from sae_lens_maira.activations.block import Block
from sae_lens_maira.activations.format import unit_path
from sae_lens_maira.activations.unit_file import MappedUnit, write_unit

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Place:
    """Location of a study's activations: a block, and a range of its tokens."""

    block: int
    start: int
    stop: int


class Recording:
    """Recorded studies: tokens are copied to memory, activations stay where they are (memory-mapped).

    Args:
        blocks: activations, in memory or memory-mapped; they are not copied.
        hook_name: the hook point.
        n_studies: record only the source's first ``n_studies`` studies; all if None.

    Attributes:
        hook_name: the hook point.
        studies: index in the source of each recorded study.
        offsets: recorded study s has the tokens ``offsets[s]:offsets[s + 1]``.
        token_ids: id of each token, as in rows.
        positions: position of each token in its compact row.
        kinds: kind of each token, as :class:`~sae_lens_maira.data.study.TokenKind` values.

    Raises:
        ValueError: no study has activations.
    """

    def __init__(self, blocks: Iterable[Block], hook_name: str, n_studies: int | None = None) -> None:
        self.hook_name = hook_name
        self._activations: list[Tensor] = []
        self._places: list[_Place] = []
        studies: list[int] = []
        parts: dict[str, list[np.ndarray]] = {"token_ids": [], "position": [], "kind": []}
        for number, block in enumerate(blocks):
            self._activations.append(block.activations[hook_name])
            index = np.asarray(block.study_index)
            starts = np.flatnonzero(np.diff(index, prepend=index[:1] - 1))
            columns = {name: np.asarray(getattr(block, name)) for name in parts}
            for start, stop in zip(starts, [*starts[1:], len(index)], strict=True):
                if n_studies is None or index[start] < n_studies:
                    studies.append(int(index[start]))
                    self._places.append(_Place(number, int(start), int(stop)))
                    for name, values in columns.items():
                        parts[name].append(values[start:stop])
        if not studies:
            raise ValueError("There are no activations of the chosen studies; choose more of them.")
        lengths = [place.stop - place.start for place in self._places]
        self.studies: Integer[np.ndarray, " n_studies"] = np.array(studies)
        self.offsets: Integer[np.ndarray, " n_studies_plus_1"] = np.concatenate([[0], np.cumsum(lengths)])
        self.token_ids: Integer[np.ndarray, " n_tokens"] = np.concatenate(parts["token_ids"]).astype(np.int64)
        self.positions: Integer[np.ndarray, " n_tokens"] = np.concatenate(parts["position"]).astype(np.int64)
        self.kinds: Integer[np.ndarray, " n_tokens"] = np.concatenate(parts["kind"]).astype(np.uint8)

    @property
    def n_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def n_studies(self) -> int:
        return len(self.studies)

    @cached_property
    def study_of_token(self) -> Integer[np.ndarray, " n_tokens"]:
        """Number of the recorded study to which each token belongs."""
        return np.repeat(np.arange(self.n_studies), np.diff(self.offsets))

    def tokens(self, study: int) -> slice:
        """The tokens of a recorded study."""
        return slice(int(self.offsets[study]), int(self.offsets[study + 1]))

    def activations(self, study: int) -> Float[Tensor, "n_tokens d_in"]:
        """One recorded study's activations."""
        place = self._places[study]
        return self._activations[place.block][place.start : place.stop].to(torch.float32)

    def chunks(self, n_tokens: int) -> Iterator[Float[Tensor, "n_chunk d_in"]]:
        """All activations in the order of the tokens, whole studies at a time, about ``n_tokens`` tokens."""
        first = 0
        while first < self.n_studies:
            place, last = self._places[first], first
            while (
                last + 1 < self.n_studies
                and self._places[last + 1].block == place.block
                and self._places[last + 1].start == self._places[last].stop
                and self._places[last + 1].stop - place.start <= n_tokens
            ):
                last += 1
            yield self._activations[place.block][place.start : self._places[last].stop].to(torch.float32)
            first = last + 1

    def only(self, keep: Bool[np.ndarray, " n_studies"]) -> Recording:
        """The recorded studies where a mask is true; activations are shared, not copied."""
        chosen = np.flatnonzero(keep)
        if not len(chosen):
            raise ValueError("None of the studies may be shown; --include-private shows them on this machine.")
        other = Recording.__new__(Recording)
        other.hook_name = self.hook_name
        other._activations, other._places = self._activations, [self._places[study] for study in chosen]
        other.studies = self.studies[chosen]
        lengths = np.diff(self.offsets)[chosen]
        other.offsets = np.concatenate([[0], np.cumsum(lengths)])
        tokens = np.concatenate([np.arange(self.n_tokens)[self.tokens(int(study))] for study in chosen])
        other.token_ids, other.positions, other.kinds = (
            values[tokens] for values in (self.token_ids, self.positions, self.kinds)
        )
        return other


def record(stream: Iterable[Block], hook_name: str, folder: Path) -> Recording:
    """Read a stream once and store its activations on disk, in the files of a cache.

    Args:
        stream: activations, such as those of a live model.
        hook_name: one of its hook points.
        folder: where the files are written.

    Raises:
        ValueError: no study has activations.
    """
    blocks: list[Block] = []
    for number, block in enumerate(stream):
        for study in block.skipped:
            logger.warning("Study %d is left out: %s %s", study.index, study.reason, study.detail)
        write_unit(folder, number, "", block)
        if block.n_tokens:
            blocks.append(MappedUnit(unit_path(folder, number)).block([hook_name]))
    return Recording(blocks, hook_name)
