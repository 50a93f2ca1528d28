"""What can be checked because the phantom's truth is known: are explanations right, and do scores say so?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from sae_lens_maira.interpret.evidence import Evidence
from sae_lens_maira.interpret.explanation import Explanation
from sae_lens_maira.interpret.scoring import Scored
from sae_lens_maira.measures.intervals import Interval, wilson
from sae_lens_maira.measures.ranking import auroc
from sae_lens_maira.phantom.generate import PhantomStudy

MIN_POSITIVE = 10
"""Studies with a concept that are needed to say which features detect it."""
RIGHT = 0.95
"""A feature has a concept if its strongest activation in a study detects it with at least this AUROC."""


@dataclass(frozen=True)
class Naming:
    """How often explanations name the right concept.

    Args:
        share: of the features that have a concept, with its Wilson interval.
        n_features: features that have a concept.
        wrong: those that are explained by another concept: the feature, what it detects best, what it is called.
    """

    share: Interval
    n_features: int
    wrong: list[tuple[int, str, str]]


def detected_concepts(evidence: Evidence, features: Sequence[int]) -> dict[int, dict[str, float]]:
    """The concepts that features detect, with their AUROC, on patients that no explanation was made from.

    Args:
        evidence: units of the phantom's studies.
        features: to look at.
    """
    corpus = evidence.corpus
    held_out = evidence.masks["choose"] | evidence.masks["score"]
    studies = np.unique(corpus.study_of_unit[held_out])
    maxima = np.zeros((len(corpus.studies), corpus.n_features))
    entries = corpus.activations.tocoo()
    np.maximum.at(maxima, (corpus.study_of_unit[entries.row], entries.col), entries.data)
    names = sorted({name for number in studies for name in corpus.studies[number].labels})
    truth: Bool[np.ndarray, "n_studies n_labels"] = np.array(
        [[corpus.studies[number].labels[name].positive for name in names] for number in studies]
    )
    enough = (truth.sum(axis=0) >= MIN_POSITIVE) & ((~truth).sum(axis=0) >= MIN_POSITIVE)
    areas = auroc(maxima[studies][:, list(features)], truth[:, enough])
    kept = [name for name, is_enough in zip(names, enough, strict=True) if is_enough]
    return {
        feature: {kept[place]: float(row[place]) for place in np.flatnonzero(row >= RIGHT)}
        for feature, row in zip(features, areas, strict=True)
    }


def check_naming(evidence: Evidence, explanations: Mapping[int, Explanation], features: Sequence[int]) -> Naming:
    """How often the concept of an explanation is one that the feature detects."""
    detected = {feature: own for feature, own in detected_concepts(evidence, features).items() if own}
    wrong: list[tuple[int, str, str]] = []
    for feature, own in detected.items():
        explanation = explanations.get(feature)
        if explanation is None or explanation.concept not in own:
            called = "" if explanation is None else explanation.concept or explanation.text
            wrong.append((feature, max(own, key=lambda name: own[name]), called))
    return Naming(wilson(len(detected) - len(wrong), len(detected)), len(detected), wrong)


def is_phantom(evidence: Evidence) -> bool:
    """Whether all studies are the phantom's, so that the truth is known."""
    return all(isinstance(study, PhantomStudy) for study in evidence.corpus.studies)


def compare_with_truth(judged: Sequence[Scored], true: Sequence[Scored], *, high: float = 0.8) -> dict[str, Any]:
    """Does a high score mean a right explanation?

    Args:
        judged: explanations of several arms, scored by a judge.
        true: the same, scored by the truth.
        high: balanced accuracy from which a score counts as high, and an explanation as right.

    Returns:
        Spearman's rank correlation of the two scores; the AUROC of the judge's score for right explanations; and the
        share of high scores whose explanation is not right.
    """
    pairs = np.array(
        [
            (a.detection.balanced_accuracy.value, b.detection.balanced_accuracy.value)
            for a, b in zip(judged, true, strict=True)
        ]
    ).reshape(-1, 2)
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    right, is_high = pairs[:, 1] >= high, pairs[:, 0] >= high
    can_rank = len(pairs) > 2 and 0 < right.sum() < len(right)
    return {
        "n": len(pairs),
        "n_right": int(right.sum()),
        "spearman": _rank_correlation(pairs),
        "auroc": float(auroc(pairs[:, :1], right[:, None])[0, 0]) if can_rank else None,
        "high_but_wrong": list(wilson(int((is_high & ~right).sum()), int(is_high.sum()))),
    }


def _rank_correlation(pairs: Float[np.ndarray, "n two"]) -> float | None:
    """Spearman's: the correlation of the ranks; None where one of the two does not vary."""
    if any(len(np.unique(column)) < 2 for column in pairs.T):
        return None
    return float(np.corrcoef(rankdata(pairs[:, 0]), rankdata(pairs[:, 1]))[0, 1])
