"""A study's prompt after one pass through the model, and rows of edits that continue it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_maira.data.study import Study
from sae_lens_maira.hooked.edits import Edit, RowEdits
from sae_lens_maira.hooked.where import Where
from sae_lens_maira.steering.attention import KeysValues, SharedPrefixCache


@dataclass(frozen=True)
class Row:
    """One steered continuation of a study's prompt.

    Args:
        edits: what is edited; nothing if empty.
        where: the positions.
        seed: of the random numbers when tokens are sampled.
    """

    edits: tuple[Edit, ...] = ()
    where: Where = field(default_factory=Where)
    seed: int = 0


@dataclass(frozen=True)
class Prefill:
    """A study's prompt after one pass through the model.

    Args:
        study: the study.
        ids: token ids of the prompt.
        kinds: the kind of each token.
        layers: keys and values of each layer.
        residuals: the residual stream that enters a layer, by the layer's index.
        logits: of the report's first token.
    """

    study: Study
    ids: Int[Tensor, "1 n_prompt"]
    kinds: Int[np.ndarray, " n_prompt"]
    layers: list[KeysValues]
    residuals: dict[int, Float[Tensor, "1 n_prompt d_model"]]
    logits: Float[Tensor, "1 d_vocab"]


@dataclass
class Continuation:
    """Rows that continue a prefill: their edits, their keys and values, and what has been edited so far.

    Attributes:
        logits: of each row's next token.
        n_edited: positions that were edited in each row, over all its hook points.
        n_asked: positions that each row's where-clause chose, times its hook points.
    """

    prefill: Prefill
    rows: list[Row]
    edits: dict[str, RowEdits]
    has_edits: dict[str, Bool[Tensor, " rows"]]
    cache: SharedPrefixCache
    logits: Float[Tensor, "rows d_vocab"]
    n_edited: Int[Tensor, " rows"]
    n_asked: Int[Tensor, " rows"]
    n_new: int = 0

    def select(self, kept: Int[Tensor, " _"]) -> None:
        """Keep some rows only."""
        self.rows = [self.rows[index] for index in kept.tolist()]
        self.edits = {name: edits.select(kept.to(edits.constant.device)) for name, edits in self.edits.items()}
        self.has_edits = {name: has[kept] for name, has in self.has_edits.items()}
        self.cache.select(kept)
        self.logits = self.logits[kept.to(self.logits.device)]
        self.n_edited, self.n_asked = self.n_edited[kept], self.n_asked[kept]
