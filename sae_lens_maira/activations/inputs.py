"""The calls by which activations are asked of a model: its studies, their texts, their images, and batches of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int
from torch import Tensor

from sae_lens_maira.data.study import Study
from sae_lens_maira.rows.row import CompactRow, compact_row, encode_study

if TYPE_CHECKING:
    from sae_lens_maira.hooked import HookedMaira2
    from sae_lens_maira.rows.reader import FullInputs


def studies_of(model: HookedMaira2) -> Sequence[Study]:
    """The studies that a model's rows refer to."""
    return model.studies


def encode(model: HookedMaira2, study: Study, index: int) -> tuple[Int[np.ndarray, " n_tokens"], CompactRow]:
    """A study's full prompt as token ids, and the row that is kept of it; no image is opened.

    Raises:
        RowError: the text cannot be encoded.
    """
    ids, kinds = encode_study(study, model.vlm.processor, model.policy)
    return ids, compact_row(ids, kinds, model.policy, model.row_vocabulary, index)


def image_inputs(model: HookedMaira2, study: Study) -> Mapping[str, Tensor]:
    """What the model is given of one study's images, which are opened."""
    return model.vlm.processor.images(study)


def assemble(
    model: HookedMaira2,
    ids: Sequence[Int[np.ndarray, " n_tokens"]],
    rows: Sequence[CompactRow],
    images: Sequence[Mapping[str, Tensor]],
) -> FullInputs:
    """Inputs of a batch of studies, filled up on the right to the longest of them."""
    width = max(len(row.tokens) for row in rows)
    return model.reader.assemble(ids, rows, width, "right", images)
