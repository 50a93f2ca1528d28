"""From rows back to the real model's inputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, overload

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sae_lens_maira.data.study import Study
from sae_lens_maira.errors import RowError
from sae_lens_maira.maira2.processing import Maira2Processor, pad_rows
from sae_lens_maira.rows.policy import TokenPolicy
from sae_lens_maira.rows.row import PAD_POSITION, CompactRow, RowVocabulary, compact_row, encode_study, study_prompt

_REMEMBERED_STUDIES = 512


@dataclass(frozen=True)
class FullInputs:
    """What the real model is given for a batch of rows.

    Args:
        model_inputs: ``input_ids`` and ``attention_mask`` of shape (batch, sequence), and ``pixel_values``.
        positions: where the rows' tokens are in the sequence, -1 at padding.
        predicting_positions: where the row's next token is predicted, -1 at padding and where nothing predicts it; a
            last token's is its own position.
    """

    model_inputs: dict[str, Tensor]
    positions: Int[Tensor, "batch context"]
    predicting_positions: Int[Tensor, "batch context"]

    def to(self, device: torch.device) -> FullInputs:
        """The same on a device."""
        return FullInputs(
            {name: tensor.to(device) for name, tensor in self.model_inputs.items()},
            self.positions.to(device),
            self.predicting_positions.to(device),
        )


class StudyList(Sequence[Study]):
    """A source of studies, followed by studies that were added to it."""

    def __init__(self, source: Sequence[Study]) -> None:
        self._source = source
        self._added: list[Study] = []

    @property
    def fingerprint(self) -> str | None:
        """The source's own, as long as nothing was added."""
        return None if self._added else getattr(self._source, "fingerprint", None)

    @property
    def description(self) -> dict[str, Any] | None:
        """The source's own, if it has one, as long as nothing was added."""
        return None if self._added else getattr(self._source, "description", None)

    def append(self, study: Study) -> int:
        """Add a study, and return its index."""
        self._added.append(study)
        return len(self) - 1

    def __len__(self) -> int:
        return len(self._source) + len(self._added)

    @overload
    def __getitem__(self, index: int) -> Study: ...
    @overload
    def __getitem__(self, index: slice) -> list[Study]: ...
    def __getitem__(self, index: int | slice) -> Study | list[Study]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        n_source, position = len(self._source), index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"There is no study {index} among {len(self)}.")
        return self._source[position] if position < n_source else self._added[position - n_source]


class StudyReader:
    """Finds the studies of rows and rebuilds their full inputs."""

    def __init__(
        self, studies: Sequence[Study], processor: Maira2Processor, policy: TokenPolicy, vocabulary: RowVocabulary
    ) -> None:
        self.studies = StudyList(studies)
        self._processor = processor
        self._policy = policy
        self._vocabulary = vocabulary
        self._encode = lru_cache(_REMEMBERED_STUDIES)(self._encode_index)

    def add(self, studies: Iterable[Study]) -> list[int]:
        """Make studies known, and return their indices."""
        return [self.studies.append(study) for study in studies]

    def rows(self, indices: Sequence[int], context_size: int | None) -> Int[Tensor, "batch context"]:
        """Rows of known studies."""
        rows = [self._encode(index)[1] for index in indices]
        width = context_size or max(len(row.tokens) for row in rows)
        pad = self._processor.tokenizer.pad_token_id
        return torch.from_numpy(np.stack([row.padded(width, pad).tokens for row in rows]))

    def read(self, tokens: Int[Tensor, "batch context"], padding_side: Literal["left", "right"]) -> FullInputs:
        """Rebuild the inputs of rows.

        Raises:
            RowError: a row does not start with the token of a known study, or is not what the policy keeps of it.
        """
        if tokens.ndim != 2:
            raise RowError(f"Rows have shape (batch, context), but these have {tuple(tokens.shape)}.")
        rows = tokens.cpu().numpy()
        indices = [self._study_index(int(row[0])) for row in rows]
        encoded = [self._encode(index) for index in indices]
        for row, index, (_, expected) in zip(rows, indices, encoded, strict=True):
            self._check(row, index, expected)
        return self._batch(
            indices, [ids for ids, _ in encoded], [row for _, row in encoded], rows.shape[1], padding_side
        )

    def for_generation(self, studies: Sequence[Study]) -> FullInputs:
        """Inputs that ask for the findings of studies, padded on the left."""
        policy = replace(self._policy, text="prompt")
        encoded = [encode_study(study, self._processor, policy) for study in studies]
        rows = [compact_row(ids, kinds, policy, self._vocabulary, 0) for ids, kinds in encoded]
        width = max(len(row.tokens) for row in rows)
        pixels = self._processor.pixel_values([study_prompt(study, "prompt") for study in studies])
        return self.assemble([ids for ids, _ in encoded], rows, width, "left", pixels)

    def _batch(
        self,
        indices: list[int],
        ids: list[np.ndarray],
        rows: list[CompactRow],
        width: int,
        side: Literal["left", "right"],
    ) -> FullInputs:
        prompts = [study_prompt(self.studies[index], self._policy.text) for index in indices]
        return self.assemble(ids, rows, width, side, self._processor.pixel_values(prompts))

    def assemble(
        self,
        ids: list[np.ndarray],
        rows: list[CompactRow],
        width: int,
        side: Literal["left", "right"],
        pixel_values: Tensor,
    ) -> FullInputs:
        """Put encoded studies into one batch.

        Args:
            ids: full prompts.
            rows: what is kept of them.
            width: length of the padded rows.
            side: where shorter prompts are filled up.
            pixel_values: images of all studies, in the order of their placeholders.
        """
        input_ids = pad_rows(ids, self._processor.tokenizer.pad_token_id, side)
        mask = pad_rows([np.ones_like(row) for row in ids], 0, side)
        offsets = mask.shape[1] - mask.sum(dim=1) if side == "left" else torch.zeros(len(ids), dtype=torch.long)
        kept = np.stack([row.padded(width, 0).positions for row in rows])
        positions = torch.from_numpy(kept).long()
        is_pad = positions == PAD_POSITION
        following = torch.cat([positions[:, 1:], torch.full_like(positions[:, :1], PAD_POSITION)], dim=1)
        predicting = torch.where(following == PAD_POSITION, positions, following - 1)
        shift = offsets[:, None]
        return FullInputs(
            {"input_ids": input_ids, "attention_mask": mask, "pixel_values": pixel_values},
            torch.where(is_pad, PAD_POSITION, positions + shift),
            # Nothing predicts the first token of a prompt, which a row may keep.
            torch.where(predicting < 0, PAD_POSITION, predicting + shift),
        )

    def _encode_index(self, index: int) -> tuple[np.ndarray, CompactRow]:
        ids, kinds = encode_study(self.studies[index], self._processor, self._policy)
        return ids, compact_row(ids, kinds, self._policy, self._vocabulary, index)

    def _study_index(self, token: int) -> int:
        index = self._vocabulary.study_index(token)
        if not 0 <= index < len(self.studies):
            raise RowError(
                f"A row starts with token {token}, which is no study of this model (it knows {len(self.studies)}); "
                "make rows with model.rows(...) or model.to_tokens(...)."
            )
        return index

    def _check(self, row: np.ndarray, index: int, expected: CompactRow) -> None:
        wanted: Any = expected.padded(len(row), self._processor.tokenizer.pad_token_id).tokens
        differs = np.flatnonzero(row != wanted)
        if len(differs):
            raise RowError(
                f"The row of study '{self.studies[index].study_id}' differs from what this model keeps of it, from "
                f"position {differs[0]} on: it was made with another model, token policy or source; make it again with "
                "model.rows(...)."
            )
