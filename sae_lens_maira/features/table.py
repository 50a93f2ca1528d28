"""Statistics of all features, computed from a recording."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from tqdm.auto import tqdm

from sae_lens_maira.data.study import Label, TokenKind
from sae_lens_maira.features.firings import encode, folded_copy, study_maxima
from sae_lens_maira.features.labels import LabelFit, fit_labels
from sae_lens_maira.features.sparse import n_columns, n_rows, transposed
from sae_lens_maira.features.statistics import (
    FeatureCounts,
    LogitEffects,
    Partners,
    count_firings,
    decoder_neighbors,
    logit_effects,
    partners,
    strongest,
)
from sae_lens_maira.features.subject import Subject

if TYPE_CHECKING:
    import pandas as pd

N_TOP_TOKENS = 5
_TOKEN_SAMPLE = 32
"""Number of a feature's strongest tokens, of which the most frequent ones are listed."""


@dataclass(frozen=True)
class FeatureTable:
    """Statistics of all features.

    Args:
        groups: Matryoshka group of each feature, from 0, coarsest first.
        counts: how often and how strongly each fires, over all recorded studies.
        top_tokens: token ids at its strongest activations, most frequent first; only from studies that may be shown.
        examples: recorded studies in which it is strongest, only those that may be shown; -1 where there are fewer.
        example_maxima: its strongest activation in each of the examples.
        cosine: the features with the most similar decoder rows, (n_features, k), and the cosines.
        effects: effects on the logits.
        partners: co-activation of each feature.
        labels: those that best match each feature.
        firings: feature activations, tokens by features.
        by_feature: the same, features by tokens.
    """

    groups: Int[np.ndarray, " n_features"]
    counts: FeatureCounts
    top_tokens: list[list[int]]
    examples: Int[np.ndarray, "n_features k"]
    example_maxima: Float[np.ndarray, "n_features k"]
    cosine: tuple[np.ndarray, np.ndarray]
    effects: LogitEffects
    partners: list[Partners]
    labels: list[list[LabelFit]]
    firings: csr_array
    by_feature: csr_array

    @property
    def n_features(self) -> int:
        return len(self.groups)

    def to_pandas(self) -> pd.DataFrame:
        """One row per feature: its number (the index), group, counts, strongest activation, and best label.

        ``density`` is the share of tokens at which it fires; ``n_findings`` and the like count these tokens by kind.
        """
        import pandas as pd

        counts, best = self.counts, [fits[0] if fits else None for fits in self.labels]
        by_kind = {
            f"n_{kind.name.lower()}": counts.by_kind[:, kind]
            for kind in TokenKind
            if kind is not TokenKind.PAD and kind < counts.by_kind.shape[1]
        }
        columns: dict[str, Any] = {
            "group": self.groups,
            "density": counts.n_firing / n_rows(self.firings),
            "n_firing": counts.n_firing,
            "largest": counts.largest,
            "mean": counts.mean,
            **by_kind,
            "label": [None if fit is None else fit.label for fit in best],
            "auroc": [None if fit is None else fit.auroc for fit in best],
        }
        return pd.DataFrame(columns, index=pd.RangeIndex(self.n_features, name="feature"))

    def strongest_features(self, n_features: int) -> list[int]:
        """The features with the strongest activations, strongest first; dead features are left out."""
        order = np.argsort(-self.counts.largest, kind="stable")
        return [int(feature) for feature in order[:n_features] if self.counts.n_firing[feature]]


def group_widths(sae: Any) -> list[int]:
    """Cumulative widths of the Matryoshka groups, from the SAE's metadata; one group if there are none."""
    metadata = sae.cfg.metadata
    details = metadata.get("training_architecture_details") or {}
    widths = metadata.get("matryoshka_widths") or details.get("matryoshka_widths") or []
    return [*(int(width) for width in widths if width < sae.cfg.d_sae), int(sae.cfg.d_sae)]


def compute_table(
    subject: Subject,
    labels: Sequence[Mapping[str, Label]],
    shown: Bool[np.ndarray, " n_studies"],
    folder: Path,
    *,
    n_examples: int = 8,
    n_neighbors: int = 12,
    n_logits: int = 10,
    show_progress: bool = True,
) -> FeatureTable:
    """Compute the table; intermediate results go to files in a folder.

    Args:
        subject: the SAE, its model, and a recording.
        labels: labels of each recorded study.
        shown: mask of the recorded studies whose text may be shown.
        folder: for intermediate files.
        n_examples: studies per feature.
        n_neighbors: similar features per feature.
        n_logits: promoted and suppressed tokens per feature.
        show_progress: whether to show progress bars.
    """
    recording, folded = subject.recording, folded_copy(subject.sae)
    firings = encode(folded, recording, folder / "firings", show_progress=show_progress)
    by_feature = transposed(firings, folder / "by_feature")
    maxima = study_maxima(firings, recording, folder / "maxima")
    examples, example_maxima = strongest(maxima, n_examples, shown)
    tokens, _ = strongest(firings, _TOKEN_SAMPLE, shown[recording.study_of_token])
    groups = np.searchsorted(group_widths(subject.sae), np.arange(n_columns(firings)), side="right")
    # The first token of each study has a unique id, and stands for the frontal image.
    vocabulary = subject.model.row_vocabulary
    frontal = vocabulary.image_token(TokenKind.FRONTAL_IMAGE)
    token_ids = np.where(recording.token_ids >= vocabulary.study_token(0), frontal, recording.token_ids)
    found_partners = tqdm(
        partners(firings, by_feature, groups, k=n_neighbors),
        desc="partners",
        total=n_columns(firings),
        disable=not show_progress,
    )
    return FeatureTable(
        groups=groups,
        counts=count_firings(firings, recording.kinds),
        top_tokens=[_most_frequent(token_ids[own[own >= 0]]) for own in tokens],
        examples=examples,
        example_maxima=example_maxima,
        cosine=decoder_neighbors(folded.W_dec.detach(), n_neighbors),
        effects=logit_effects(folded.W_dec.detach().float().cpu(), subject.unembedding, n_logits),
        partners=list(found_partners),
        labels=fit_labels(transposed(maxima, folder / "maxima_by_feature"), labels),
        firings=firings,
        by_feature=by_feature,
    )


def _most_frequent(token_ids: Int[np.ndarray, " n"]) -> list[int]:
    """Distinct ids, most frequent first; of equally frequent ids, the one that comes first."""
    return [token_id for token_id, _ in Counter(token_ids.tolist()).most_common()]
