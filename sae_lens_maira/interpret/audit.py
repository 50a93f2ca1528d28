"""The judge, judged: pairs whose truth is known, asked before anything is scored.

1. True and false pairs come from the phantom's grammar, whose sentences have one meaning each: false ones are near
   misses by negation, side, change or word, or another finding. Where the studies are the phantom's, images whose
   concept was not drawn are added.
2. On a random half of the pairs a threshold is chosen, at which balanced accuracy is best; all figures are of the
   other half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from sae_lens_maira.errors import InterpretError
from sae_lens_maira.interpret.corpus import Corpus
from sae_lens_maira.interpret.counterfactuals import Counterfactual, counterfactual_units
from sae_lens_maira.interpret.explanation import explanation_of
from sae_lens_maira.interpret.facts import Fact, Rule, facts_of_labels, holds, parts_of, words_of
from sae_lens_maira.interpret.judges import Judge, Pair
from sae_lens_maira.interpret.scores import balanced_accuracy
from sae_lens_maira.interpret.shown import ShownUnit, show
from sae_lens_maira.measures.intervals import Interval, wilson
from sae_lens_maira.measures.ranking import auroc
from sae_lens_maira.phantom.words.grammar import NORMAL_STATEMENTS, Claim, possible_changes, sentences
from sae_lens_maira.phantom.world.concepts import VISIBLE

AuditKind: TypeAlias = Literal["true", "negation", "side", "change", "word", "other", "counterfactual"]
N_BINS = 5


class AuditPair(NamedTuple):
    """A pair whose truth is known; ``kind`` says how a false one is false."""

    kind: AuditKind
    pair: Pair
    is_true: bool


@dataclass(frozen=True)
class Audit:
    """How good a judge is where the truth is known.

    Args:
        judge: its name.
        threshold: from which probability on its answer counts as yes.
        balanced_accuracy: at this threshold.
        accuracy: the same, as a share of all pairs with its Wilson interval.
        balanced_accuracy_at_half: at a threshold of one half, as it comes.
        auroc: of the probabilities.
        bias: mean probability minus the share of true pairs; positive for a judge that says yes too often.
        n_abstained: pairs without an answer, which count as wrong.
        by_kind: share of pairs of each kind that were answered rightly.
        reliability: per bin: mean probability, share of true pairs, number of pairs.
        n_pairs: pairs that the figures are of.
    """

    judge: str
    threshold: float
    balanced_accuracy: float
    accuracy: Interval
    balanced_accuracy_at_half: float
    auroc: float
    bias: float
    n_abstained: int
    by_kind: dict[AuditKind, float]
    reliability: list[tuple[float, float, int]]
    n_pairs: int

    def check(self, least: float) -> None:
        """Refuse a judge that is too weak.

        Raises:
            InterpretError: its balanced accuracy is smaller.
        """
        if self.balanced_accuracy < least:
            raise InterpretError(
                f"The judge '{self.judge}' is too weak: its balanced accuracy is {self.balanced_accuracy:.2f} on "
                f"{self.n_pairs} pairs whose truth is known, and {least:.2f} is asked for; choose another model, or "
                "accept this one with --accept-weak-judge."
            )


def run_audit(judge: Judge, pairs: Sequence[AuditPair]) -> Audit:
    """Ask the judge, choose its threshold on half of the pairs, and measure it on the others."""
    judgements = judge.judge([pair.pair for pair in pairs], "audit")
    probabilities = np.array([np.nan if found.probability is None else found.probability for found in judgements])
    is_true = np.array([pair.is_true for pair in pairs])
    chosen = np.random.default_rng(0).permutation(len(pairs)) % 2 == 0
    threshold = best_threshold(is_true[chosen], probabilities[chosen])
    own, truth = probabilities[~chosen], is_true[~chosen]
    abstained = np.isnan(own)
    filled = np.where(abstained, 0.5, own)
    correct = ((own >= threshold) == truth) & ~abstained
    kinds = np.array([pair.kind for pair in pairs], dtype=object)[~chosen]
    return Audit(
        judge.name,
        threshold,
        balanced_accuracy(truth, np.where(abstained, ~truth, own >= threshold)),
        wilson(int(correct.sum()), len(correct)),
        balanced_accuracy(truth, np.where(abstained, ~truth, own >= 0.5)),
        float(auroc(filled[:, None], truth[:, None])[0, 0]),
        float(filled.mean() - truth.mean()),
        int(abstained.sum()),
        {kind: float(correct[kinds == kind].mean()) for kind in dict.fromkeys(kinds.tolist())},
        _reliability(filled, truth),
        len(truth),
    )


def best_threshold(is_true: Bool[np.ndarray, " n"], probabilities: Float[np.ndarray, " n"]) -> float:
    """The threshold with the best balanced accuracy; of equal ones, that nearest to one half."""
    known = np.unique(probabilities[np.isfinite(probabilities)])
    middles = [0.5, *((known[1:] + known[:-1]) / 2).tolist()]
    filled = np.where(np.isnan(probabilities), 0.5, probabilities)
    return max(middles, key=lambda value: (balanced_accuracy(is_true, filled >= value), -abs(value - 0.5)))


def grammar_pairs(n_pairs: int, seed: int) -> list[AuditPair]:
    """Pairs of an explanation and a sentence of the phantom's grammar, half of them true."""
    rng = np.random.default_rng(seed)
    found: list[AuditPair] = []
    makers = (_negation, _side, _change, _word, _other)
    while len(found) < n_pairs:
        concept = str(rng.choice(VISIBLE))
        pairs = makers[(len(found) // 2) % len(makers)](concept, rng)
        found += [pair for pair in pairs if pair.is_true == (pair.kind == "true")] if len(pairs) == 2 else []
    order = rng.permutation(len(found))
    return [found[place] for place in order]


def corpus_pairs(
    corpus: Corpus, counterfactuals: Sequence[Counterfactual], n_pairs: int, *, with_images: bool = False
) -> list[AuditPair]:
    """Pairs of images and their renders without a concept: the explanation names it, and is true of the first only."""
    found: list[AuditPair] = []
    for new in counterfactuals:
        for number in corpus.units_of_study(new.origin):
            others = counterfactual_units(corpus, number, [new])
            if corpus.units[number].place == "frontal" and others and len(found) < n_pairs:
                explanation = explanation_of((Fact("concept", new.concept), Fact("section", "frontal")))
                drawn, missing = (
                    Pair(explanation, show(corpus, place, with_images=with_images)) for place in (number, others[0])
                )
                found += [AuditPair("true", drawn, True), AuditPair("counterfactual", missing, False)]
    return found


def _negation(concept: str, rng: np.random.Generator) -> list[AuditPair]:
    finding = parts_of(concept).finding
    normal = [
        statement for statement in NORMAL_STATEMENTS if Fact("absent", finding) in facts_of_labels(statement.labels)
    ]
    if not normal:
        return []
    absent = str(rng.choice(normal[0].wordings))
    present, labels = _sentence(concept, rng)
    if rng.random() < 0.5:
        return _two("negation", (Fact("concept", concept),), present, labels, absent, dict(normal[0].labels))
    return _two("negation", (Fact("absent", finding),), absent, dict(normal[0].labels), present, labels)


def _side(concept: str, rng: np.random.Generator) -> list[AuditPair]:
    side = parts_of(concept).side
    if side is None:
        return []
    mirrored = concept.replace(side, "left" if side == "right" else "right")
    return _two("side", (Fact("concept", concept),), *_sentence(concept, rng), *_sentence(mirrored, rng))


def _change(concept: str, rng: np.random.Generator) -> list[AuditPair]:
    changes = [change for change in possible_changes(concept) if change is not None]
    first, second = rng.choice(np.array(changes, dtype=object), 2, replace=False)
    rule = tuple(sorted((Fact("finding", parts_of(concept).finding), Fact("change", first))))
    return _two("change", rule, *_sentence(concept, rng, first), *_sentence(concept, rng, second))


def _word(concept: str, rng: np.random.Generator) -> list[AuditPair]:
    text, labels = _sentence(concept, rng)
    other, other_labels = _sentence(str(rng.choice(VISIBLE)), rng)
    words = [word for word in words_of(text) if word not in words_of(other)]
    return _two("word", (Fact("word", str(rng.choice(words))),), text, labels, other, other_labels) if words else []


def _other(concept: str, rng: np.random.Generator) -> list[AuditPair]:
    finding = parts_of(concept).finding
    other = str(rng.choice([name for name in VISIBLE if parts_of(name).finding != finding]))
    return _two("other", (Fact("finding", finding),), *_sentence(concept, rng), *_sentence(other, rng))


def _sentence(concept: str, rng: np.random.Generator, change: str | None = None) -> tuple[str, dict]:
    claim = Claim(concept, "present", change)  # pyright: ignore[reportArgumentType]
    return str(rng.choice(sentences(claim))), claim.labels


def _two(kind: AuditKind, rule: Rule, true: str, true_labels: dict, false: str, false_labels: dict) -> list[AuditPair]:
    """A true pair and a false one, if the facts agree that they are."""
    explanation = explanation_of(rule)
    pairs: list[AuditPair] = []
    sides: list[tuple[AuditKind, str, dict]] = [("true", true, true_labels), (kind, false, false_labels)]
    for name, text, labels in sides:
        facts = frozenset(
            {*facts_of_labels(labels), Fact("section", "findings"), *(Fact("word", w) for w in words_of(text))}
        )
        pairs.append(AuditPair(name, Pair(explanation, ShownUnit("findings", text, facts)), holds(rule, facts)))
    return pairs if [pair.is_true for pair in pairs] == [True, False] else []


def _reliability(
    probabilities: Float[np.ndarray, " n"], is_true: Bool[np.ndarray, " n"]
) -> list[tuple[float, float, int]]:
    bins = np.minimum((probabilities * N_BINS).astype(int), N_BINS - 1)
    return [
        (float(probabilities[bins == place].mean()), float(is_true[bins == place].mean()), int((bins == place).sum()))
        for place in range(N_BINS)
        if (bins == place).any()
    ]
