"""Absorption on the tree of concepts: the parent's latent is silent where a child's latent fires, against exact truth.

A dictionary absorbs a parent concept ("effusion") into a child ("large right effusion") if the parent's latent leaves
out the studies of that child (Chanin et al. 2024, arXiv 2409.14507). SAEBench judges by a probe where the parent is;
here the truth is known.

1. On choosing studies, a node's latent is the one of the best AUROC, with the threshold of the best F1. The child's
   latent is another one than the parent's.
2. On held-out studies that show a child, it is absorbed where its parent's latent is silent and its own fires.
3. A parent whose latent has an F1 below 0.5 on choosing studies has no feature that could be absorbed; it is left out,
   and the share of parents that were judged is a score of its own.

In a nested dictionary, the parent's latent is also chosen within each group alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from sae_lens_maira.measures.ranking import auroc
from sae_lens_maira.phantom.world.concepts import CONCEPTS, VISIBLE

MIN_F1 = 0.5
MIN_STUDIES = 5


class Feature(NamedTuple):
    """A node's latent: its number, its threshold, and its F1 on the choosing studies."""

    latent: int
    threshold: float
    f1: float


class Absorption(NamedTuple):
    """Scores of one set of parent latents.

    Args:
        rate: share of a child's studies that are absorbed, mean over children.
        missed: share of a child's studies in which the parent's latent is silent, mean over children.
        judged: share of parents whose latent is good enough to be judged.
    """

    rate: float
    missed: float
    judged: float


def concept_tree() -> dict[str, dict[str, frozenset[str]]]:
    """Children of each parent, each as the visible concepts that it stands for, such as effusion, side, size."""
    nodes: dict[str, dict[str, set[str]]] = {}
    for name in VISIBLE:
        concept = CONCEPTS[name]
        kind = concept.family.removesuffix(f"_{concept.side}")
        if concept.kind == "device":
            nodes.setdefault("device", {}).setdefault(kind, set()).add(name)
        if concept.family != kind:
            nodes.setdefault(kind, {}).setdefault(concept.family, set()).add(name)
        if concept.family != name:
            nodes.setdefault(concept.family, {}).setdefault(name, set()).add(name)
    return {
        parent: {child: frozenset(names) for child, names in children.items()}
        for parent, children in nodes.items()
        if len(children) > 1
    }


def best_feature(
    values: Float[np.ndarray, "n_studies d_sae"],
    positive: Bool[np.ndarray, " n_studies"],
    allowed: Int[np.ndarray, " n_allowed"],
) -> Feature:
    """The latent of the best AUROC among the allowed ones, with the threshold of its best F1.

    Args:
        values: each study's strongest activation of each latent.
        positive: which studies show the node.
        allowed: latents to choose from.
    """
    areas = auroc(values[:, allowed], positive[:, None])[:, 0]
    latent = int(allowed[int(np.argmax(areas))])
    order = np.argsort(-values[:, latent], kind="stable")
    ranked = values[order, latent]
    hits = np.cumsum(positive[order])
    scores = 2 * hits / (np.arange(1, len(hits) + 1) + positive.sum())
    last_of_ties = np.append(ranked[1:] != ranked[:-1], True) & (ranked > 0)
    if not last_of_ties.any():
        return Feature(latent, 0.0, 0.0)
    best = int(np.argmax(np.where(last_of_ties, scores, -1)))
    below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    return Feature(latent, float((ranked[best] + max(below, 0.0)) / 2), float(scores[best]))


def absorption(
    train: Float[np.ndarray, "n_train d_sae"],
    train_truth: Bool[np.ndarray, "n_train n_visible"],
    test: Float[np.ndarray, "n_test d_sae"],
    test_truth: Bool[np.ndarray, "n_test n_visible"],
    parents_from: Sequence[int] | range | None = None,
    tree: Mapping[str, Mapping[str, frozenset[str]]] | None = None,
) -> Absorption:
    """Absorption of the tree's parents, as the module's docstring defines it.

    Args:
        train: choosing studies' strongest activation of each latent.
        train_truth: which of them show each concept, in the order of ``VISIBLE``.
        test: the same of held-out studies.
        test_truth: which of them show each concept.
        parents_from: latents among which a parent's is chosen; all if None.
        tree: as :func:`concept_tree` gives it.
    """
    everything = np.arange(train.shape[1])
    allowed = everything if parents_from is None else np.asarray(parents_from)
    rates, missed, judged = [], [], []
    for children in (tree or concept_tree()).values():
        columns = {child: [VISIBLE.index(name) for name in sorted(names)] for child, names in children.items()}
        every = sorted(column for own in columns.values() for column in own)
        positive = _shows_any(train_truth, every)
        if not MIN_STUDIES <= positive.sum() <= len(positive) - MIN_STUDIES:
            continue
        parent = best_feature(train, positive, allowed)
        judged.append(parent.f1 >= MIN_F1)
        if parent.f1 < MIN_F1:
            continue
        others = everything[everything != parent.latent]
        for own in columns.values():
            chosen, shown = _shows_any(train_truth, own), _shows_any(test_truth, own)
            if min(chosen.sum(), shown.sum()) < MIN_STUDIES:
                continue
            child = best_feature(train, chosen, others)
            silent = test[shown, parent.latent] <= parent.threshold
            rates.append(float((silent & (test[shown, child.latent] > child.threshold)).mean()))
            missed.append(float(silent.mean()))
    means = [float(np.mean(values)) if values else float("nan") for values in (rates, missed, judged)]
    return Absorption(*means)


def _shows_any(
    truth: Bool[np.ndarray, "n_studies n_visible"], columns: Sequence[int]
) -> Bool[np.ndarray, " n_studies"]:
    """Which studies show any of some concepts."""
    return truth[:, list(columns)].sum(axis=1) > 0
