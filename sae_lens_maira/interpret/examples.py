"""Examples of a feature: units in which it is on, over quantiles, and units in which it is silent, of named kinds.

A feature is *on* in a unit if its activation exceeds half of its scale (:mod:`.rules`), and *silent* if it is at most a
tenth of it; units between are neither. Kinds of silent units, each scored by itself:

``random``          any
``same_section``    of the sections in which the feature is on
``sibling``         a feature that is often on together with this one is on
``contrast``        the same finding with another side, size, change or negation; without labels, the most similar words
``counterfactual``  on the phantom, the same body rendered without the concept
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csc_array, csr_array

from sae_lens_maira.interpret.corpus import Corpus
from sae_lens_maira.interpret.counterfactuals import Counterfactual, counterfactual_units
from sae_lens_maira.interpret.facts import Fact
from sae_lens_maira.interpret.rules import SILENT, STRONG

SilentKind: TypeAlias = Literal["random", "same_section", "sibling", "contrast", "counterfactual"]
SILENT_KINDS: tuple[SilentKind, ...] = get_args(SilentKind)
N_SIBLINGS = 5


@dataclass(frozen=True)
class Example:
    """One unit of a feature.

    Args:
        unit: its number.
        kind: ``on``, or the kind of silent unit.
        strength: the activation, relative to the feature's scale.
    """

    unit: int
    kind: Literal["on"] | SilentKind
    strength: float

    @property
    def is_on(self) -> bool:
        return self.kind == "on"


class ExampleFinder:
    """Finds the examples of features among the units of one set of patients.

    Args:
        corpus: units.
        relative: activations relative to each feature's scale, (n_units, n_features).
        part: mask of the units to choose from.
        explain: mask of the units on which siblings are found.
        counterfactuals: renders of this set's studies without one concept.
        seed: of the choice.
    """

    def __init__(
        self,
        corpus: Corpus,
        relative: csr_array,
        part: Bool[np.ndarray, " n_units"],
        explain: Bool[np.ndarray, " n_units"],
        counterfactuals: Sequence[Counterfactual] = (),
        seed: int = 0,
    ) -> None:
        self._corpus, self._part, self._seed = corpus, part, seed
        self._relative = csc_array(relative)
        self._counterfactuals = counterfactuals
        on = csc_array(relative[np.flatnonzero(explain)])
        on.data = (on.data > STRONG).astype(np.float64)
        self._on = on
        self._places = np.array([unit.place for unit in corpus.units], dtype=object)

    def strengths(self, feature: int) -> Float[np.ndarray, " n_units"]:
        """A feature's relative activation in every unit."""
        start, stop = self._relative.indptr[feature], self._relative.indptr[feature + 1]
        dense = np.zeros(len(self._corpus.units))
        dense[self._relative.indices[start:stop]] = self._relative.data[start:stop]
        return dense

    def find(self, feature: int, n_on: int, n_silent: int) -> list[Example]:
        """Examples of a feature: those in which it is on, strongest first, then the silent ones by kind.

        Args:
            feature: the feature.
            n_on: units in which it is on, at most.
            n_silent: silent units of each kind, at most.
        """
        rng = np.random.default_rng([self._seed, feature])
        strengths = self.strengths(feature)
        on = self._over_quantiles(np.flatnonzero(self._part & (strengths > STRONG)), strengths, n_on, rng)
        silent = self._part & (strengths <= SILENT)
        pools: dict[SilentKind, np.ndarray] = {
            "contrast": self._contrast(on, silent),
            "sibling": self._with_siblings(feature, silent),
            "same_section": silent & np.isin(self._places, list({self._places[unit] for unit in on})),
            "random": silent,
        }
        chosen: dict[SilentKind, list[int]] = {"counterfactual": self._without(on, strengths)[:n_silent]}
        used: set[int] = set(chosen["counterfactual"])
        for kind, pool in pools.items():
            free = [unit for unit in self._spread(np.flatnonzero(pool), rng) if unit not in used][:n_silent]
            chosen[kind] = free
            used.update(free)
        examples = [Example(unit, "on", float(strengths[unit])) for unit in on]
        return examples + [Example(u, kind, float(strengths[u])) for kind in SILENT_KINDS for u in chosen[kind]]

    def siblings(self, feature: int) -> list[int]:
        """The features that are most often on together with this one (Jaccard index over units)."""
        own = self._on[:, [feature]]
        together = np.asarray((self._on.T @ own).todense()).ravel()
        n_on = np.asarray(self._on.sum(axis=0)).ravel()
        jaccard = together / np.maximum(n_on + n_on[feature] - together, 1)
        jaccard[feature] = 0
        best = np.argsort(-jaccard, kind="stable")[:N_SIBLINGS]
        return [int(other) for other in best if jaccard[other] > 0]

    def _over_quantiles(
        self, units: Int[np.ndarray, " n"], strengths: Float[np.ndarray, " n_units"], n: int, rng: np.random.Generator
    ) -> list[int]:
        """Units over equal quantiles of strength, one per study as far as there are enough, strongest first."""
        order = units[np.argsort(-strengths[units], kind="stable")]
        studies = self._corpus.study_of_unit[order]
        first = np.zeros(len(order), dtype=bool)
        first[np.unique(studies, return_index=True)[1]] = True
        pool = order[first] if first.sum() >= n else np.concatenate([order[first], order[~first][: n - first.sum()]])
        pool = pool[np.argsort(-strengths[pool], kind="stable")]
        if len(pool) <= n:
            return pool.tolist()
        edges = np.linspace(0, len(pool), n + 1).astype(int)
        return [int(pool[rng.integers(low, high)]) for low, high in pairwise(edges)]

    def _spread(self, units: Int[np.ndarray, " n"], rng: np.random.Generator) -> list[int]:
        """Units in random order, one per study first."""
        shuffled = rng.permutation(units)
        seen: Counter[int] = Counter()
        ranks = []
        for unit in shuffled:
            study = int(self._corpus.study_of_unit[unit])
            ranks.append(seen[study])
            seen[study] += 1
        return shuffled[np.argsort(ranks, kind="stable")].tolist() if len(shuffled) else []

    def _with_siblings(self, feature: int, silent: Bool[np.ndarray, " n_units"]) -> Bool[np.ndarray, " n_units"]:
        fires = np.zeros(len(silent), dtype=bool)
        for other in self.siblings(feature):
            fires |= self.strengths(other) > STRONG
        return silent & fires

    def _contrast(self, on: Sequence[int], silent: Bool[np.ndarray, " n_units"]) -> Bool[np.ndarray, " n_units"]:
        units = self._corpus.units
        subjects = Counter(
            fact.value for unit in on for fact in units[unit].facts if fact.kind in ("finding", "absent")
        )
        if subjects:
            name = subjects.most_common(1)[0][0]
            wanted = {Fact("finding", name), Fact("absent", name)}
            return silent & np.array([bool(wanted & unit.facts) for unit in units])
        return self._similar_words(on, silent)

    def _similar_words(self, on: Sequence[int], silent: Bool[np.ndarray, " n_units"]) -> Bool[np.ndarray, " n_units"]:
        """The silent units that share most words with a unit in which the feature is on."""
        units = self._corpus.units
        words = [{fact for fact in units[int(unit)].facts if fact.kind == "word"} for unit in on]
        likeness = np.zeros(len(units))
        for number in np.flatnonzero(silent):
            own = {fact for fact in units[int(number)].facts if fact.kind == "word"}
            if own:
                likeness[number] = max((len(own & other) / len(own | other) for other in words), default=0.0)
        close = np.flatnonzero(likeness > 0)
        best = close[np.argsort(-likeness[close], kind="stable")][: 4 * max(len(on), 1)]
        mask = np.zeros(len(units), dtype=bool)
        mask[best] = True
        return mask

    def _without(self, on: Sequence[int], strengths: Float[np.ndarray, " n_units"]) -> list[int]:
        """The units that take the place of those in which the feature is on when the concept is not drawn."""
        found = (unit for number in on for unit in counterfactual_units(self._corpus, number, self._counterfactuals))
        return [unit for unit in dict.fromkeys(found) if strengths[unit] <= SILENT]
