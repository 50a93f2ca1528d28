"""From rows back to the real model's inputs.

A reader belongs to one source of studies and never changes it. Studies outside the source get *scratch* rows: their
study tokens have ids above those of the source, and only the last few hundred of these studies are remembered.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sae_lens_maira.data.source import StudySource
from sae_lens_maira.data.study import Study, TokenKind
from sae_lens_maira.errors import ImageError, RowError, StudyImageError
from sae_lens_maira.rows.policy import TokenPolicy
from sae_lens_maira.rows.row import PAD_POSITION, CompactRow, RowVocabulary, compact_row, encode_study
from sae_lens_maira.vlm import PaddingSide, RaggedTokenIds, StudyProcessor, TokenIds, pad_rows

_REMEMBERED_STUDIES = 512


@dataclass(frozen=True)
class FullInputs:
    """The real model's inputs for a batch of rows.

    Args:
        model_inputs: ``input_ids`` and ``attention_mask`` of shape (batch, sequence), and image inputs such as
            ``pixel_values``.
        positions: position in the sequence of each token of a row; -1 at padding.
        predicting_positions: position whose logits predict the row's next token. The last token of a row has no next
            token, so its own position is given. -1 at padding, and before the first token of the prompt, which no
            position predicts.
        kinds: kind of every token of the full prompts; None if it is not known.
    """

    model_inputs: dict[str, Tensor]
    positions: Int[Tensor, "batch context"]
    predicting_positions: Int[Tensor, "batch context"]
    kinds: Int[Tensor, "batch sequence"] | None = None

    def to(self, device: torch.device) -> FullInputs:
        """The same inputs on a device."""
        return FullInputs(
            {name: tensor.to(device) for name, tensor in self.model_inputs.items()},
            self.positions.to(device),
            self.predicting_positions.to(device),
            None if self.kinds is None else self.kinds.to(device),
        )


class StudyReader:
    """Makes rows from studies, finds the studies of rows, and rebuilds their full inputs.

    Args:
        studies: the studies to which study tokens refer, by index.
        processor: the model's processor.
        policy: which tokens rows keep.
        vocabulary: token ids of rows.
    """

    def __init__(
        self, studies: StudySource, processor: StudyProcessor, policy: TokenPolicy, vocabulary: RowVocabulary
    ) -> None:
        self.studies = studies
        self._processor = processor
        self._policy = policy
        self._vocabulary = vocabulary
        self._scratch: OrderedDict[int, Study] = OrderedDict()
        self._n_scratch = 0
        self.encode = lru_cache(_REMEMBERED_STUDIES)(self._encode)
        """Full prompt and unpadded row of the study at an index; cached for the last few hundred studies."""

    @property
    def n_study_tokens(self) -> int:
        """Number of study tokens in use so far: one per study of the source, and one per scratch study."""
        return len(self.studies) + self._n_scratch

    def study(self, index: int) -> Study:
        """The study that a study token refers to.

        Raises:
            RowError: there is no such study, or it was a scratch study that is no longer remembered.
        """
        if 0 <= index < len(self.studies):
            return self.studies[index]
        if index in self._scratch:
            return self._scratch[index]
        if len(self.studies) <= index < self.n_study_tokens:
            raise RowError(
                f"A row of to_tokens(...) is too old: only the last {_REMEMBERED_STUDIES} of its studies are "
                "remembered; make it again, or bind the studies with model.with_studies(...)."
            )
        raise RowError(
            f"A row starts with token {self._vocabulary.study_token(index)}, which is no study of this model (it knows "
            f"{len(self.studies)}); make rows with model.rows(...) or model.to_tokens(...)."
        )

    def add_scratch(self, studies: Sequence[Study]) -> list[int]:
        """Indices for studies outside the source; a study that is still remembered keeps its index."""
        known = {id(study): index for index, study in self._scratch.items()}
        indices: list[int] = []
        for study in studies:
            index = known.get(id(study))
            if index is None:
                index = known[id(study)] = self.n_study_tokens
                self._n_scratch += 1
            self._scratch[index] = study
            self._scratch.move_to_end(index)
            indices.append(index)
        while len(self._scratch) > max(_REMEMBERED_STUDIES, len(studies)):
            self._scratch.popitem(last=False)
        return indices

    def rows(self, indices: Sequence[int], context_size: int | None) -> Int[Tensor, "batch context"]:
        """Rows of studies, by index; as long as the longest one if ``context_size`` is None."""
        rows = [self.encode(index)[1] for index in indices]
        width = context_size or max(len(row.tokens) for row in rows)
        pad = self._processor.tokenizer.pad_token_id
        return torch.from_numpy(np.stack([row.padded(width, pad).tokens for row in rows]))

    def read(self, tokens: Int[Tensor, "*shape"], padding_side: PaddingSide) -> FullInputs:
        """Rebuild the inputs of rows.

        Raises:
            RowError: a row does not start with the token of a known study, or differs from that study's row.
            StudyImageError: an image of a study is broken, missing or too large.
        """
        if tokens.ndim != 2:
            raise RowError(f"Rows have shape (batch, context), but these have {tuple(tokens.shape)}.")
        rows = tokens.cpu().numpy()
        indices = [self._vocabulary.study_index(int(row[0])) for row in rows]
        studies = [self.study(index) for index in indices]
        encoded = [self.encode(index) for index in indices]
        for row, study, (_, expected) in zip(rows, studies, encoded, strict=True):
            self._check(row, study, expected)
        images = [self.images(index) for index in indices]
        return self.assemble(
            [ids for ids, _ in encoded], [row for _, row in encoded], rows.shape[1], padding_side, images
        )

    def images(self, index: int) -> Mapping[str, Tensor]:
        """Image inputs of the study at an index.

        Raises:
            StudyImageError: an image is broken, missing or too large.
        """
        study = self.study(index)
        try:
            return self._processor.images(study)
        except ImageError as error:
            raise StudyImageError(index, study.study_id, str(error)) from error

    def for_generation(self, studies: Sequence[Study]) -> FullInputs:
        """Inputs that ask for the findings of studies, padded on the left for generation."""
        policy = replace(self._policy, text="prompt")
        encoded = [encode_study(study, self._processor, policy) for study in studies]
        rows = [compact_row(ids, kinds, policy, self._vocabulary, 0) for ids, kinds in encoded]
        width = max(len(row.tokens) for row in rows)
        images = [self._processor.images(study) for study in studies]
        return self.assemble([ids for ids, _ in encoded], rows, width, "left", images)

    def assemble(
        self,
        ids: RaggedTokenIds,
        rows: Sequence[CompactRow],
        width: int,
        side: PaddingSide,
        images: Sequence[Mapping[str, Tensor]],
    ) -> FullInputs:
        """Combine encoded studies into one batch.

        Args:
            ids: full prompts.
            rows: the compact row of each.
            width: length of the padded rows.
            side: side on which shorter prompts are padded.
            images: image inputs of each study.
        """
        model_inputs = self._processor.collate(ids, images, side)
        n_positions = model_inputs["input_ids"].shape[1]
        offsets = [n_positions - len(own) if side == "left" else 0 for own in ids]
        positions = torch.from_numpy(np.stack([row.padded(width, 0).positions for row in rows])).long()
        is_pad = positions == PAD_POSITION
        following = torch.cat([positions[:, 1:], torch.full_like(positions[:, :1], PAD_POSITION)], dim=1)
        predicting = torch.where(following == PAD_POSITION, positions, following - 1)
        shift = torch.tensor(offsets)[:, None]
        kinds = [row.prompt_kinds for row in rows if row.prompt_kinds is not None]
        return FullInputs(
            model_inputs,
            torch.where(is_pad, PAD_POSITION, positions + shift),
            # No position predicts the first token of a prompt, which a row may keep.
            torch.where(predicting < 0, PAD_POSITION, predicting + shift),
            pad_rows(kinds, TokenKind.PAD, side) if len(kinds) == len(rows) else None,
        )

    def encode_study(self, study: Study, index: int) -> tuple[TokenIds, CompactRow]:
        """Full prompt and unpadded row of a study with a given index; no image is opened.

        Raises:
            RowError: the text cannot be encoded.
        """
        ids, kinds = encode_study(study, self._processor, self._policy)
        return ids, compact_row(ids, kinds, self._policy, self._vocabulary, index)

    def _encode(self, index: int) -> tuple[TokenIds, CompactRow]:
        return self.encode_study(self.study(index), index)

    def _check(self, row: np.ndarray, study: Study, expected: CompactRow) -> None:
        wanted: Any = expected.padded(len(row), self._processor.tokenizer.pad_token_id).tokens
        differs = np.flatnonzero(row != wanted)
        if len(differs):
            raise RowError(
                f"The row of study '{study.study_id}' differs from what this model keeps of it, from position "
                f"{differs[0]} on: it was made with another model, token policy or source; make it again with "
                "model.rows(...)."
            )
