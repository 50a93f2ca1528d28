"""Detection scores against plain loops and by hand; the audit of judges that are good, blind or contrary."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_lens_maira.errors import InterpretError
from sae_lens_maira.interpret.audit import best_threshold, corpus_pairs, grammar_pairs, run_audit
from sae_lens_maira.interpret.chat import Purpose
from sae_lens_maira.interpret.explanation import Explanation
from sae_lens_maira.interpret.facts import Fact
from sae_lens_maira.interpret.judges import Judgement, Pair, TruthJudge
from sae_lens_maira.interpret.scores import score_detection, shuffled_score
from sae_lens_maira.interpret.scoring import intruder_test
from sae_lens_maira.interpret.shown import ShownUnit
from tests.interpret.planted import IMAGE, PACEMAKER


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0])), min_size=4, max_size=30).filter(
        lambda rows: 0 < sum(on for on, _ in rows) < len(rows)
    )
)
def test_scores_equal_those_that_are_counted_pair_by_pair(rows):
    is_on = np.array([on for on, _ in rows])
    values = np.array([value for _, value in rows])
    on, off = values[is_on], values[~is_on]
    found = score_detection(is_on, values, np.arange(len(rows)), ["on" if flag else "random" for flag in is_on])
    assert found.balanced_accuracy.value == pytest.approx((np.mean(on >= 0.5) + np.mean(off < 0.5)) / 2)
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in on for b in off]
    assert found.auroc.value == pytest.approx(sum(wins) / len(wins))
    assert found.by_kind["random"] == pytest.approx(found.balanced_accuracy.value)


@pytest.mark.parametrize("answer", [0.0, 1.0])
def test_always_the_same_answer_scores_exactly_one_half(answer):
    is_on = np.array([True] * 3 + [False] * 17)
    found = score_detection(is_on, np.full(20, answer), np.arange(20), ["on"] * 3 + ["random"] * 17)
    assert found.balanced_accuracy == (0.5, 0.5, 0.5)
    assert found.auroc.value == 0.5


def test_an_abstention_is_wrong_and_is_counted():
    is_on = np.array([True, True, False, False])
    found = score_detection(
        is_on, np.array([0.9, np.nan, np.nan, 0.1]), list("abcd"), ["on", "on", "random", "sibling"]
    )
    assert found.balanced_accuracy.value == 0.5
    assert found.n_abstained == 2
    assert found.by_kind == {"random": 0.25, "sibling": 0.75}
    assert found.auroc.value == pytest.approx((1 + 1 + 0.5 + 1) / 4)


def test_one_side_alone_has_no_score():
    found = score_detection(np.array([True, True]), np.array([0.9, 0.2]), list("ab"), ["on", "on"])
    assert np.isnan(found.balanced_accuracy.value)
    assert found.sensitivity == 0.5


def test_the_interval_is_wider_when_all_units_are_of_few_patients():
    rng = np.random.default_rng(0)
    is_on = np.arange(60) % 2 == 0
    # Answers go wrong by patient, not by unit.
    wrong = np.repeat(rng.random(6) < 0.4, 10)
    values = np.where(is_on ^ wrong, 0.9, 0.1)
    kinds = ["on" if on else "random" for on in is_on]
    few = score_detection(is_on, values, np.repeat(np.arange(6), 10), kinds).balanced_accuracy
    many = score_detection(is_on, values, np.arange(60), kinds).balanced_accuracy
    assert few.high - few.low > 1.5 * (many.high - many.low)


def test_shuffled_labels_score_one_half_and_true_ones_do_not():
    is_on = np.array([True] * 8 + [False] * 12)
    values = np.where(is_on, 0.9, 0.1)
    assert score_detection(is_on, values, np.arange(20), ["on"] * 8 + ["random"] * 12).balanced_accuracy.value == 1
    assert abs(shuffled_score(is_on, values, n_shuffles=400) - 0.5) < 0.03


class Blind:
    """Says yes with the same probability to everything."""

    name = "blind"

    def judge(self, pairs: Sequence[Pair], purpose: Purpose) -> list[Judgement]:
        return [Judgement(0.6) for _ in pairs]

    def find_intruders(self, groups: Sequence[Sequence[ShownUnit]]) -> list[int | None]:
        return [0 for _ in groups]


class Shifted(Blind):
    """Knows the truth, but never goes above 0.4."""

    name = "shifted"

    def judge(self, pairs: Sequence[Pair], purpose: Purpose) -> list[Judgement]:
        known = TruthJudge(()).judge(pairs, purpose)
        return [Judgement(0.4 * (found.probability or 0.0)) for found in known]


def test_half_of_the_pairs_are_true_and_the_false_ones_are_near_misses():
    pairs = grammar_pairs(200, seed=1)
    assert sum(pair.is_true for pair in pairs) == 100
    assert {pair.kind for pair in pairs} == {"true", "negation", "side", "change", "word", "other"}
    for pair in pairs:
        assert pair.is_true == all(fact in pair.pair.unit.facts for fact in (pair.pair.explanation.rule or ()))
    assert grammar_pairs(200, seed=1) == pairs
    assert grammar_pairs(200, seed=2) != pairs


def test_the_audit_finds_a_perfect_a_blind_and_a_shifted_judge():
    pairs = grammar_pairs(120, seed=0)
    perfect, blind, shifted = (run_audit(judge, pairs) for judge in (TruthJudge(()), Blind(), Shifted()))
    assert (perfect.balanced_accuracy, perfect.auroc, perfect.n_pairs) == (1, 1, 60)
    assert set(perfect.by_kind.values()) == {1.0}
    assert (blind.balanced_accuracy, blind.auroc) == (0.5, 0.5)
    assert blind.bias == pytest.approx(0.6 - np.mean([p.is_true for p, c in _reported(pairs)]), abs=0.2)
    assert shifted.threshold == pytest.approx(0.2)
    assert (shifted.balanced_accuracy, shifted.balanced_accuracy_at_half) == (1, 0.5)
    assert shifted.bias < -0.2
    assert perfect.reliability == [(0.0, 0.0, pytest.approx(30, abs=12)), (1.0, 1.0, pytest.approx(30, abs=12))]


def test_a_weak_judge_is_refused_in_one_sentence():
    audit = run_audit(Blind(), grammar_pairs(60, seed=0))
    with pytest.raises(InterpretError, match=r"judge 'blind' is too weak: .* 0\.50 on 30 pairs .* --accept-weak-judge"):
        audit.check(0.7)
    run_audit(TruthJudge(()), grammar_pairs(60, seed=0)).check(1.0)


def test_a_threshold_is_the_best_one_and_one_half_where_that_is_as_good():
    is_true = np.array([True, True, False, False])
    assert best_threshold(is_true, np.array([0.3, 0.4, 0.1, 0.2])) == pytest.approx(0.25)
    assert best_threshold(is_true, np.array([0.9, 0.8, 0.1, np.nan])) in (0.5, pytest.approx(0.65))
    assert best_threshold(is_true, np.full(4, 0.7)) == 0.5


def test_renders_without_a_concept_are_false_pairs(evidence):
    pairs = corpus_pairs(evidence.corpus, evidence.counterfactuals, 20)
    assert [pair.is_true for pair in pairs] == [True, False] * (len(pairs) // 2)
    assert len(pairs) >= 10
    assert run_audit(TruthJudge(()), pairs * 3).balanced_accuracy == 1


def test_the_truth_finds_intruders_and_a_blind_judge_does_by_chance(evidence):
    found = intruder_test(evidence, [PACEMAKER, IMAGE], TruthJudge(()))
    assert found[PACEMAKER].value == 1
    many = intruder_test(evidence, list(range(7)), Blind())
    assert np.mean([own.value for own in many.values()]) < 0.6


def test_an_explanation_in_words_is_read_by_the_truth_and_one_that_says_nothing_is_abstained_from():
    known = [
        Fact("concept", "effusion_left_small"),
        Fact("finding", "effusion"),
        Fact("absent", "effusion"),
        Fact("side", "left"),
    ]
    unit = ShownUnit("findings", "Small left effusion.", frozenset({Fact("finding", "effusion"), Fact("side", "left")}))
    judge = TruthJudge(known)

    def answer(explanation: Explanation) -> float | None:
        return judge.judge([Pair(explanation, unit)], "judge")[0].probability

    assert answer(Explanation("A sentence about an effusion.", "model")) == 1
    assert answer(Explanation("A sentence about an effusion.", "model", polarity="absent")) == 0
    assert answer(Explanation("Fluid.", "model", side="left")) == 1
    assert answer(Explanation("Something else.", "model")) is None
    assert answer(Explanation("", "control", rule=())) == 1


def _reported(pairs):
    chosen = np.random.default_rng(0).permutation(len(pairs)) % 2 == 0
    return [(pair, mask) for pair, mask in zip(pairs, chosen, strict=True) if not mask]
