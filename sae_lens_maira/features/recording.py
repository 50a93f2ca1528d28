"""Activations of some studies at one hook point: from the model, which then runs once, or from a cache, without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_maira.data.study import TokenKind
from sae_lens_maira.hooked.model import HookedMaira2
from sae_lens_maira.rows.dataset import StudyRows


@runtime_checkable
class Block(Protocol):
    """Whole studies, tokens after one another; what an activation cache yields."""

    @property
    def activations(self) -> Any: ...
    @property
    def token_ids(self) -> Any: ...
    @property
    def study_index(self) -> Any: ...
    @property
    def position(self) -> Any: ...
    @property
    def kind(self) -> Any: ...


@dataclass(frozen=True)
class RecordedBlock:
    """A :class:`Block` of arrays."""

    activations: Any
    token_ids: np.ndarray
    study_index: np.ndarray
    position: np.ndarray
    kind: np.ndarray


@dataclass(frozen=True)
class _Place:
    """Where a study's activations are."""

    block: int
    start: int
    stop: int


class Recording:
    """Studies' tokens in memory, their activations where they are (memory mapped).

    Args:
        blocks: activations, in blocks of whole studies.
        n_studies: studies from this index of the source on are left out; None for all.

    Attributes:
        studies: index into the source, of each recorded study.
        offsets: study s has the tokens ``offsets[s]:offsets[s + 1]``.
        token_ids: as in rows.
        positions: in the compact row.
        kinds: :class:`TokenKind` values.

    Raises:
        ValueError: there is nothing to show.
    """

    def __init__(self, blocks: Sequence[Block], n_studies: int | None = None) -> None:
        self._blocks = blocks
        self._places: list[_Place] = []
        studies: list[int] = []
        parts: dict[str, list[np.ndarray]] = {"token_ids": [], "position": [], "kind": []}
        for number, block in enumerate(blocks):
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
        """Number of the recorded study that each token belongs to."""
        return np.repeat(np.arange(self.n_studies), np.diff(self.offsets))

    def tokens(self, study: int) -> slice:
        """The tokens of a recorded study."""
        return slice(int(self.offsets[study]), int(self.offsets[study + 1]))

    def activations(self, study: int) -> Float[Tensor, "n_tokens d_in"]:
        """One recorded study's activations."""
        place = self._places[study]
        return _as_tensor(self._blocks[place.block].activations[place.start : place.stop])

    def chunks(self, n_tokens: int) -> Iterator[Float[Tensor, "n_chunk d_in"]]:
        """All activations in the order of the tokens, about so many tokens at a time, whole studies."""
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
            yield _as_tensor(self._blocks[place.block].activations[place.start : self._places[last].stop])
            first = last + 1

    def only(self, keep: np.ndarray) -> Recording:
        """The recorded studies that a mask keeps; activations are shared."""
        chosen = np.flatnonzero(keep)
        if not len(chosen):
            raise ValueError("None of the studies may be shown; --include-private shows them on this machine.")
        other = Recording.__new__(Recording)
        other._blocks, other._places = self._blocks, [self._places[study] for study in chosen]
        other.studies = self.studies[chosen]
        lengths = np.diff(self.offsets)[chosen]
        other.offsets = np.concatenate([[0], np.cumsum(lengths)])
        tokens = np.concatenate([np.arange(self.n_tokens)[self.tokens(int(study))] for study in chosen])
        other.token_ids, other.positions, other.kinds = (
            values[tokens] for values in (self.token_ids, self.positions, self.kinds)
        )
        return other


def record(
    model: HookedMaira2,
    rows: StudyRows,
    hook_name: str,
    folder: Path,
    *,
    batch_size: int = 16,
    before_batch: Callable[[range], None] = lambda _: None,
    show_progress: bool = True,
) -> Recording:
    """Run the model once on every study, and keep its activations in a file.

    Args:
        model: to run.
        rows: of its studies.
        hook_name: where to read, such as ``blocks.15.hook_resid_post``.
        folder: for the file.
        batch_size: studies a forward.
        before_batch: called with the studies' indices before each.
        show_progress: whether to show a progress bar.
    """
    hidden = not show_progress
    folder.mkdir(parents=True, exist_ok=True)
    dataset = rows.dataset.with_format("numpy")
    starts = range(0, len(dataset), batch_size)
    lengths = [(dataset[k : k + batch_size]["kinds"] != TokenKind.PAD).sum(axis=1) for k in starts]
    shape = (int(sum(own.sum() for own in lengths)), model.cfg.d_model)
    written = np.memmap(folder / "activations.f4", np.float32, mode="w+", shape=shape)
    layer = int(hook_name.split(".")[1])
    parts: dict[str, list[np.ndarray]] = {"token_ids": [], "study_index": [], "position": [], "kind": []}
    done = 0
    for start, own in tqdm(zip(starts, lengths, strict=True), desc="activations", total=len(starts), disable=hidden):
        batch = dataset[start : start + batch_size]
        before_batch(range(start, start + len(own)))
        width = int(own.max())
        is_token = batch["kinds"][:, :width] != TokenKind.PAD
        tokens = torch.from_numpy(np.ascontiguousarray(batch["tokens"][:, :width])).to(model.cfg.device)
        with torch.no_grad():
            _, cache = model.run_with_cache(tokens, names_filter=[hook_name], stop_at_layer=layer + 1)
        found = cache[hook_name].float().cpu().numpy()[is_token]
        written[done : done + len(found)] = found
        done += len(found)
        parts["token_ids"].append(batch["tokens"][:, :width][is_token])
        parts["kind"].append(batch["kinds"][:, :width][is_token])
        study, position = np.nonzero(is_token)
        parts["study_index"].append(study + start)
        parts["position"].append(position)
    columns = {name: np.concatenate(values) for name, values in parts.items()}
    return Recording([RecordedBlock(activations=written, **columns)])


def _as_tensor(values: Any) -> Tensor:
    """A copy in fp32, whatever it was mapped as."""
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    return tensor.to(torch.float32)
