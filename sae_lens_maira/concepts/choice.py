"""The best feature of a set for every item, chosen on one half of the patients and scored on the other.

The same rule holds for latents and for every control: of all features, pooled by maximum or by mean, the one with the
largest AUROC on the choosing half. Choosing the best of many inflates its score there; on the other half it does not,
but a larger set still has better luck, which is why controls go through the same choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int

from sae_lens_maira.concepts.exam import Exam, Item
from sae_lens_maira.concepts.feature_sets import FeatureSet
from sae_lens_maira.concepts.pooled import Pool, PooledBlock, Ranked, rank
from sae_lens_maira.concepts.ranked import auroc, precision
from sae_lens_maira.concepts.resampled import Resampled, resampled_scores

POOLS: tuple[Pool, ...] = ("max", "mean")


@dataclass(frozen=True)
class Pick:
    """A feature that was chosen for an item.

    Args:
        item: number of the item.
        feature: number of the feature.
        pool: how its values in the region are pooled.
        auroc: on the choosing half.
    """

    item: int
    feature: int
    pool: Pool
    auroc: float


@dataclass(frozen=True, eq=False)
class Scored:
    """A pick's scores on the other half.

    Args:
        pick: what was chosen.
        threshold: with the largest F1 on the choosing half.
        scores: of all studies of the other half, then of each resample of its patients.
    """

    pick: Pick
    threshold: float
    scores: Resampled


@dataclass(frozen=True, eq=False)
class ChoiceBlock:
    """AUROCs of a block of features on the choosing half, by item, for the better of the pools.

    Args:
        features: number of each feature.
        auroc: NaN where there is no item.
        pool: index of the better pool in ``POOLS``.
    """

    features: Int[np.ndarray, " n_features"]
    auroc: Float32[np.ndarray, "n_features n_items"]
    pool: Int[np.ndarray, "n_features n_items"]


Observer = Callable[[ChoiceBlock, PooledBlock], None]


def choose(
    features: FeatureSet,
    exam: Exam,
    pools: Sequence[Pool] = POOLS,
    observers: Sequence[Observer] = (),
) -> list[Pick]:
    """The best feature for every item; of equally good ones the first.

    Args:
        features: the set.
        exam: items and halves.
        pools: how values may be pooled.
        observers: are called with the AUROCs of every block of features.
    """
    n_items = len(exam.items)
    best = np.full(n_items, -np.inf)
    chosen = np.zeros(n_items, dtype=np.int64)
    chosen_pool = np.zeros(n_items, dtype=np.int64)
    for numbers, block in features.blocks():
        found = choice_block(numbers, block, exam, pools)
        for observer in observers:
            observer(found, block)
        top = found.auroc.argmax(axis=0)
        at_top = found.auroc[top, np.arange(n_items)]
        better = at_top > best
        best[better] = at_top[better]
        chosen[better] = numbers[top[better]]
        chosen_pool[better] = found.pool[top, np.arange(n_items)][better]
    return [
        Pick(item, int(chosen[item]), POOLS[chosen_pool[item]], float(best[item]))
        for item in range(n_items)
        if np.isfinite(best[item])
    ]


def choice_block(
    numbers: Int[np.ndarray, " n_features"], block: PooledBlock, exam: Exam, pools: Sequence[Pool] = POOLS
) -> ChoiceBlock:
    """AUROCs of a block on the choosing half."""
    n_items = len(exam.items)
    areas = np.full((len(numbers), n_items), -np.inf, dtype=np.float32)
    best_pool = np.zeros((len(numbers), n_items), dtype=np.int64)
    for reading in exam.readings:
        for pool in pools:
            ranked = rank(block, exam.segments, reading.segments, reading.n_tokens, pool).only(exam.is_choice)
            for group in reading.groups:
                columns = [item.number for item in group]
                positive = np.stack([item.positive for item in group], axis=1)
                found = auroc(ranked, group[0].asked & exam.is_choice, positive).astype(np.float32)
                is_better = found > areas[:, columns]
                areas[:, columns] = np.where(is_better, found, areas[:, columns])
                best_pool[:, columns] = np.where(is_better, POOLS.index(pool), best_pool[:, columns])
    return ChoiceBlock(numbers, areas, best_pool)


def score(features: FeatureSet, picks: Sequence[Pick], exam: Exam) -> list[Scored]:
    """Score picks on the other half of the patients, in the order of the picks."""
    wanted = np.unique([pick.feature for pick in picks]).astype(np.int64)
    found: dict[int, Scored] = {}
    by_feature: dict[int, list[int]] = {}
    for index, pick in enumerate(picks):
        by_feature.setdefault(pick.feature, []).append(index)
    items = exam.items
    for numbers, block in features.blocks(wanted):
        own = [(index, row) for row, feature in enumerate(numbers.tolist()) for index in by_feature[feature]]
        own.sort(key=lambda pair: (_place(picks[pair[0]], exam), pair[0]))
        last, ranked = None, None
        for index, row in own:
            pick = picks[index]
            if ranked is None or _place(pick, exam) != last:
                last, reading = _place(pick, exam), exam.reading_of_item[pick.item]
                ranked = rank(block, exam.segments, reading.segments, reading.n_tokens, pick.pool)
            found[index] = score_values(pick, ranked.feature(row), items[pick.item], exam)
    return [found[index] for index in range(len(picks))]


def score_values(pick: Pick, ranked: Ranked, item: Item, exam: Exam) -> Scored:
    """Score the values of one feature: the threshold from the choosing half, everything else from the other."""
    threshold = float(precision(ranked, item.asked & exam.is_choice, item.positive).threshold[0])
    scored = item.asked & ~exam.is_choice
    return Scored(pick, threshold, resampled_scores(ranked, scored, item.positive, threshold, exam.weights))


def _place(pick: Pick, exam: Exam) -> tuple[int, str]:
    """Picks in the same place are pooled and sorted together."""
    return id(exam.reading_of_item[pick.item]), pick.pool


def p_value(areas: Float[np.ndarray, " n_resamples_plus_1"]) -> float:
    """One-sided bootstrap p-value of "the AUROC is not above one half"; the first value is that of all studies."""
    resampled = areas[1:][np.isfinite(areas[1:])]
    return float((1 + (resampled <= 0.5).sum()) / (1 + len(resampled)))
