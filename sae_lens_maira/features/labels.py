"""Which labels match a feature: the area under the ROC curve of its strongest activation in each study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.sparse import csr_array

from sae_lens_maira.data.study import Label
from sae_lens_maira.features.sparse import entries, n_columns, n_rows
from sae_lens_maira.measures.ranking import auroc

MIN_STUDIES = 5
"""Positive and negative studies that a label needs."""
_CHUNK = 256


@dataclass(frozen=True)
class LabelFit:
    """How well one feature separates a label's positive studies from its negative ones."""

    label: str
    auroc: float
    n_positive: int


def fit_labels(
    by_feature: csr_array, labels: Sequence[Mapping[str, Label]], *, k: int = 3, min_auroc: float = 0.75
) -> list[list[LabelFit]]:
    """The labels that match each feature best, best first.

    A study that says nothing about a label is left out for that label; an uncertain finding counts as positive.

    Args:
        by_feature: each feature's strongest activation in each study, (n_features, n_studies).
        labels: labels of each study.
        k: labels per feature.
        min_auroc: labels with a smaller area are left out.
    """
    names, truth = _usable(labels)
    by_mask: dict[bytes, list[int]] = {}
    for column in range(len(names)):
        by_mask.setdefault((truth[:, column] >= 0).tobytes(), []).append(column)
    found: list[list[LabelFit]] = []
    for start in range(0, n_rows(by_feature), _CHUNK):
        n_features = min(_CHUNK, n_rows(by_feature) - start)
        scores = _dense(by_feature, start, start + n_features)
        areas = np.zeros((n_features, len(names)))
        for columns in by_mask.values():
            labelled = truth[:, columns[0]] >= 0
            areas[:, columns] = auroc(scores[labelled], truth[labelled][:, columns] == 1)
        for row in areas:
            best = [int(column) for column in np.argsort(-row, kind="stable")[:k] if row[column] >= min_auroc]
            found.append(
                [LabelFit(names[column], float(row[column]), int((truth[:, column] == 1).sum())) for column in best]
            )
    return found


def _usable(labels: Sequence[Mapping[str, Label]]) -> tuple[list[str], np.ndarray]:
    """Names of labels with enough studies, and (n_studies, n_labels): 1 positive, 0 negative, -1 unknown."""
    names = sorted({name for known in labels for name in known})
    truth = np.full((len(labels), len(names)), -1, dtype=np.int8)
    for row, known in enumerate(labels):
        for column, name in enumerate(names):
            if name in known:
                truth[row, column] = known[name].positive
    enough = ((truth == 1).sum(axis=0) >= MIN_STUDIES) & ((truth == 0).sum(axis=0) >= MIN_STUDIES)
    return [name for name, usable in zip(names, enough, strict=True) if usable], truth[:, enough]


def _dense(by_feature: csr_array, start: int, stop: int) -> Float[np.ndarray, "n_studies n_features"]:
    dense = np.zeros((n_columns(by_feature), stop - start), dtype=np.float32)
    features, studies, values = entries(by_feature, start, stop)
    dense[studies, features - start] = values
    return dense
