"""Explanations without any model: the rule over concept, side, change, section and word that fits a feature best.

1. Activations are relative to a feature's scale, the 0.99 quantile of its positive activations on the patients to
   explain on. Many features fire weakly nearly everywhere and strongly at one thing, so a rule is compared with "fires
   above a level", for each of :data:`LEVELS`.
2. A rule ``A`` fits a feature at a level by the Dice coefficient ``2 |F & A| / (|F| + |A|)``, where ``F`` are the units
   with more activation than the level: it punishes rules that are too broad and rules that are too narrow. The fit of a
   rule is that of its best level.
3. Single facts are tested by Fisher's exact test (strong firing against holding), over all features and facts at once;
   those that the Benjamini-Hochberg procedure keeps at the given rate are combined: single facts, pairs, triples.
4. Of the best rules on the patients to explain on, the one that does best on the patients to choose on wins: by a mean
   of its Dice coefficient and of its balanced accuracy between units in which the feature is on and silent ones. A rule
   that names a concept or finding wins over one without as long as it does at least ``PREFERENCE`` times as well,
   because it says more than a word or a section does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float
from scipy.sparse import csc_array, csr_array
from scipy.stats import false_discovery_control, hypergeom

from sae_lens_maira.interpret.corpus import Corpus
from sae_lens_maira.interpret.facts import Fact, Rule

MIN_UNITS = 5
"""Units in which a fact must hold to be considered."""
N_WORDS = 400
"""The most frequent words that are considered."""
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
PREFERENCE = 0.9
WEIGHT = 0.75
"""Of balanced accuracy in the choice of a rule; the rest is the Dice coefficient."""
STRONG = 0.5
"""A unit with more activation than this share of the feature's scale counts as one where the feature is on."""
SILENT = 0.1
"""A feature is silent in a unit with at most this share of its scale."""
_QUANTILE = 0.99
_N_FACTS = 8
_MEANINGFUL = ("concept", "finding", "absent")


@dataclass(frozen=True)
class FittedRule:
    """A rule and how well it fits a feature.

    Args:
        rule: the facts.
        level: above which share of the feature's scale it fits best, on the patients to explain on.
        explained: Dice coefficient at this level on the patients to explain on.
        chosen: how well it does on the patients to choose on.
        q_value: adjusted p-value of its strongest single fact.
    """

    rule: Rule
    level: float
    explained: float
    chosen: float
    q_value: float


class RuleFinder:
    """Finds rules for the features of a corpus.

    Args:
        corpus: units and activations.
        relative: activations divided by each feature's scale, (n_units, n_features).
        explain: mask of the units to find rules on.
        choose: mask of the units to choose on.
        rate: false discovery rate of the single facts, over all features and facts.
        shuffle: permute the facts over the units with this seed, as a control; None leaves them.
    """

    def __init__(
        self,
        corpus: Corpus,
        relative: csr_array,
        explain: Bool[np.ndarray, " n_units"],
        choose: Bool[np.ndarray, " n_units"],
        *,
        rate: float = 0.05,
        shuffle: int | None = None,
    ) -> None:
        self.facts_of_units = facts_of_units(corpus, shuffle)
        rows = {"explain": np.flatnonzero(explain), "choose": np.flatnonzero(choose)}
        self.facts = _candidates([self.facts_of_units[place] for place in rows["explain"]])
        holding = _holding(self.facts_of_units, self.facts)
        self._holding = holding[rows["explain"]]
        self._holds = {part: holding[own].toarray() > 0 for part, own in rows.items()}
        self._relative = {part: csc_array(relative[own]) for part, own in rows.items()}
        self._dice = np.max([self._dices(level) for level in LEVELS], axis=0)
        self._q = _adjusted(_above(self._relative["explain"], STRONG), self._holding)
        self._rate = rate

    def best(self, feature: int) -> FittedRule | None:
        """The rule that fits a feature best; None if no single fact passes the test."""
        found = self.candidates(feature)
        if not found:
            return None
        top = max(found, key=lambda rule: rule.chosen)
        telling = [rule for rule in found if _tells(rule.rule) and rule.chosen >= PREFERENCE * top.chosen]
        return max(telling, key=lambda rule: rule.chosen) if telling else top

    def best_word(self, feature: int) -> FittedRule | None:
        """The single word that fits a feature best, as a control; None if no word passes the test."""
        words = [fact for fact in self._allowed(feature) if self.facts[fact].kind == "word"]
        return self._fitted(feature, (words[0],)) if words else None

    def best_concept(self, feature: int) -> FittedRule | None:
        """The single concept that fits a feature best: its label."""
        concepts = [fact for fact in self._allowed(feature) if self.facts[fact].kind in ("concept", "label")]
        return self._fitted(feature, (concepts[0],)) if concepts else None

    def candidates(self, feature: int, *, n: int = 8) -> list[FittedRule]:
        """The best rules on the patients to explain on, best first."""
        singles = self._varied(self._allowed(feature))
        sets = [(fact,) for fact in singles]
        sets += [pair for pair in combinations(sorted(singles), 2) if self._differ(pair)]
        sets += [triple for triple in combinations(sorted(singles[:6]), 3) if self._differ(triple)]
        found = [self._fitted(feature, own) for own in sets]
        found.sort(key=lambda rule: (-rule.explained, len(rule.rule), rule.rule))
        telling = [rule for rule in found if _tells(rule.rule)]
        return list(dict.fromkeys([*found[:n], *telling[:n]]))

    def _allowed(self, feature: int) -> list[int]:
        """The facts that pass the test, best first."""
        allowed = np.flatnonzero(self._q[feature] <= self._rate)
        return [int(fact) for fact in allowed[np.argsort(-self._dice[feature, allowed], kind="stable")]]

    def _varied(self, best: Sequence[int]) -> list[int]:
        """The best facts, among them at most two of a kind, and the best of each kind."""
        kept: list[int] = []
        counts: Counter[str] = Counter()
        for fact in best:
            kind = self.facts[fact].kind
            if counts[kind] < 2 and (len(kept) < _N_FACTS or counts[kind] == 0):
                kept.append(fact)
                counts[kind] += 1
        return kept

    def _differ(self, facts: tuple[int, ...]) -> bool:
        """Whether a conjunction says more than its parts: not two facts of one kind, nor a concept with its finding."""
        kinds = [self.facts[fact].kind for fact in facts]
        return len(set(kinds)) == len(kinds) and not {"concept", "finding"} <= set(kinds)

    def _dices(self, level: float) -> Float[np.ndarray, "n_features n_facts"]:
        """Dice coefficient of every feature with every fact, on the patients to explain on."""
        fires, holding = _above(self._relative["explain"], level), self._holding
        inside = (fires.T @ holding).toarray()
        return 2 * inside / np.maximum(_column_sums(fires).reshape(-1, 1) + _column_sums(holding), 1)

    def _fitted(self, feature: int, facts: tuple[int, ...]) -> FittedRule:
        explained = self._fits("explain", feature, facts)
        place = int(np.argmax(explained))
        return FittedRule(
            tuple(sorted(self.facts[fact] for fact in facts)),
            LEVELS[place],
            float(explained[place]),
            WEIGHT * self._balanced("choose", feature, facts)
            + (1 - WEIGHT) * float(self._fits("choose", feature, facts)[place]),
            float(min(self._q[feature, list(facts)])),
        )

    def _fits(self, part: str, feature: int, facts: tuple[int, ...]) -> Float[np.ndarray, " n_levels"]:
        """Dice coefficient of a feature with a conjunction, at every level."""
        relative = self._relative[part]
        held = self._holds[part][:, list(facts)].all(axis=1)
        start, stop = relative.indptr[feature], relative.indptr[feature + 1]
        fires = relative.data[start:stop, None] > np.array(LEVELS)
        inside = fires[held[relative.indices[start:stop]]].sum(axis=0)
        return 2 * inside / np.maximum(fires.sum(axis=0) + held.sum(), 1)

    def _balanced(self, part: str, feature: int, facts: tuple[int, ...]) -> float:
        """Balanced accuracy of a conjunction between units in which a feature is on and those in which it is silent."""
        relative = self._relative[part]
        held = self._holds[part][:, list(facts)].all(axis=1)
        start, stop = relative.indptr[feature], relative.indptr[feature + 1]
        strengths = np.zeros(len(held))
        strengths[relative.indices[start:stop]] = relative.data[start:stop]
        on, silent = strengths > STRONG, strengths <= SILENT
        return float((held[on].mean() + 1 - held[silent].mean()) / 2) if on.any() and silent.any() else 0.5


def relative_activations(activations: csr_array, explain: Bool[np.ndarray, " n_units"]) -> csr_array:
    """Activations divided by each feature's scale on the patients to explain on."""
    reference = csc_array(activations[np.flatnonzero(explain)])
    n_features = len(reference.indptr) - 1
    scales = np.full(n_features, np.inf)
    for feature in range(n_features):
        own = reference.data[reference.indptr[feature] : reference.indptr[feature + 1]]
        if len(own):
            scales[feature] = np.quantile(own, _QUANTILE)
    relative = csr_array(activations, copy=True, dtype=np.float64)
    relative.data /= scales[relative.indices]
    return relative


def facts_of_units(corpus: Corpus, shuffle: int | None = None) -> list[frozenset[Fact]]:
    """The facts of each unit, permuted over the units if a seed is given."""
    sets = [unit.facts for unit in corpus.units]
    if shuffle is None:
        return sets
    return [sets[place] for place in np.random.default_rng(shuffle).permutation(len(sets))]


def _tells(rule: Rule) -> bool:
    return any(fact.kind in _MEANINGFUL for fact in rule)


def _above(relative: csc_array, level: float) -> csc_array:
    """1 where a feature fires above a level."""
    fires = csc_array(relative, copy=True)
    fires.data = (fires.data > level).astype(np.float64)
    return fires


def _column_sums(matrix: csc_array | csr_array) -> np.ndarray:
    return np.asarray(matrix.sum(axis=0)).ravel()


def _adjusted(fires: csc_array, holding: csr_array) -> Float[np.ndarray, "n_features n_facts"]:
    """Fisher's exact test of "fires" and "holds" (one-sided), adjusted by Benjamini and Hochberg over all pairs."""
    both = (fires.T @ holding).toarray()
    n_fires, n_holds = _column_sums(fires).reshape(-1, 1), _column_sums(holding)
    p_values = hypergeom.sf(both - 1, holding.shape[0], n_holds, n_fires)  # pyright: ignore[reportOptionalSubscript]
    return false_discovery_control(np.clip(p_values, 0, 1).ravel()).reshape(both.shape)


def _candidates(sets: Sequence[frozenset[Fact]]) -> list[Fact]:
    """The facts that are neither rare nor everywhere."""
    counts = Counter(fact for facts in sets for fact in facts)
    frequent = [fact for fact in sorted(counts) if MIN_UNITS <= counts[fact] < len(sets)]
    words = sorted((fact for fact in frequent if fact.kind == "word"), key=lambda fact: -counts[fact])[:N_WORDS]
    return sorted({fact for fact in frequent if fact.kind != "word"} | set(words))


def _holding(sets: Sequence[frozenset[Fact]], facts: Sequence[Fact]) -> csr_array:
    """Which facts hold in which unit, (n_units, n_facts), as 0 and 1."""
    number = {fact: place for place, fact in enumerate(facts)}
    columns = [sorted(number[fact] for fact in own if fact in number) for own in sets]
    offsets = np.concatenate([[0], np.cumsum([len(own) for own in columns])])
    flat = np.array([place for own in columns for place in own], dtype=np.int64)
    return csr_array((np.ones(len(flat)), flat, offsets), shape=(len(sets), len(facts)))
