"""Explanations without a model name what was planted, and nothing where facts were shuffled."""

import numpy as np
import pytest
from scipy.stats import fisher_exact

from sae_lens_maira.interpret.evidence import Evidence
from sae_lens_maira.interpret.explain import explain_by_rules
from sae_lens_maira.interpret.explanation import explanation_of, parse_rule, readable, rule_text
from sae_lens_maira.interpret.facts import Fact
from sae_lens_maira.interpret.judges import TruthJudge
from sae_lens_maira.interpret.rules import LEVELS, RuleFinder, relative_activations
from sae_lens_maira.interpret.scoring import JudgeUse, score_arm
from sae_lens_maira.interpret.truth import check_naming, detected_concepts
from tests.interpret.planted import DEAD, EFFUSION, IMAGE, NOISE, PACEMAKER, UNCHANGED, WORD, make_evidence


@pytest.mark.parametrize(
    ("feature", "fact"),
    [
        (PACEMAKER, Fact("concept", "pacemaker")),
        (EFFUSION, Fact("finding", "effusion")),
        (IMAGE, Fact("concept", "cardiomegaly")),
        (WORD, Fact("word", "tube")),
        (UNCHANGED, Fact("change", "unchanged")),
    ],
)
def test_the_rule_of_a_feature_is_what_was_planted(evidence, feature, fact):
    found = evidence.rules.best(feature)
    assert found is not None
    wanted = {fact, Fact("finding", fact.value)} if fact.kind == "concept" else {fact}
    assert wanted & set(found.rule)
    assert found.explained > 0.95
    assert found.q_value < 1e-6


def test_a_dead_and_a_random_feature_have_no_rule(evidence):
    assert evidence.rules.best(DEAD) is None
    assert evidence.rules.best(NOISE) is None or evidence.rules.best(NOISE).explained < 0.3


def test_the_fit_of_a_single_fact_is_the_dice_coefficient_at_its_best_level(evidence):
    rules, units = evidence.rules, evidence.corpus.units
    explain = np.flatnonzero(evidence.masks["explain"])
    strengths = relative_activations(evidence.corpus.activations, evidence.masks["explain"]).toarray()[
        explain, EFFUSION
    ]
    fact = Fact("section", "findings")
    held = np.array([fact in units[number].facts for number in explain])
    dice = [2 * np.sum(held & (strengths > t)) / (held.sum() + np.sum(strengths > t)) for t in LEVELS]
    assert rules._dice[EFFUSION, rules.facts.index(fact)] == pytest.approx(max(dice))
    assert rules._fits("explain", EFFUSION, (rules.facts.index(fact),)) == pytest.approx(dice)


def test_adjusted_p_values_are_those_of_fishers_exact_test(evidence):
    rules = evidence.rules
    fires, held = rules._relative["explain"].toarray() > 0.5, rules._holds["explain"]
    raw = np.array(
        [[_fisher(fires[:, f], held[:, fact]) for fact in range(held.shape[1])] for f in range(fires.shape[1])]
    )
    # Benjamini and Hochberg: the smallest p * n / rank of this rank or a higher one.
    order = np.argsort(raw, axis=None)
    stepped = raw.ravel()[order] * raw.size / np.arange(1, raw.size + 1)
    adjusted = np.empty(raw.size)
    adjusted[order] = np.minimum.accumulate(stepped[::-1])[::-1]
    assert rules._q == pytest.approx(adjusted.reshape(raw.shape), abs=1e-9)


def test_shuffled_facts_explain_nothing(evidence):
    shuffled = RuleFinder(
        evidence.corpus, evidence.relative, evidence.masks["explain"], evidence.masks["choose"], shuffle=1
    )
    found = [shuffled.best(feature) for feature in range(evidence.corpus.n_features)]
    assert all(rule is None or rule.explained < 0.3 for rule in found)


def test_explanations_name_the_concept_that_features_detect(evidence):
    features = [PACEMAKER, IMAGE, NOISE]
    detected = detected_concepts(evidence, features)
    assert set(detected[PACEMAKER]) == {"pacemaker"}
    assert set(detected[IMAGE]) == {"cardiomegaly"}
    assert detected[NOISE] == {}
    naming = check_naming(evidence, explain_by_rules(evidence, features), features)
    assert (naming.n_features, naming.share.value, naming.wrong) == (2, 1.0, [])
    swapped = explain_by_rules(evidence, features)
    swapped[PACEMAKER], swapped[IMAGE] = swapped[IMAGE], swapped[PACEMAKER]
    assert check_naming(evidence, swapped, features).share.value == 0


def test_right_rules_score_high_and_rules_of_shuffled_facts_score_at_chance(evidence: Evidence):
    truth = JudgeUse(TruthJudge(()))
    features = [PACEMAKER, EFFUSION, IMAGE, WORD, UNCHANGED]
    right = score_arm(evidence, explain_by_rules(evidence, features), truth, "main")
    assert min(one.detection.balanced_accuracy.value for one in right) > 0.95
    assert abs(np.mean([one.shuffled for one in right]) - 0.5) < 0.02


def test_a_finding_is_named_before_a_word_that_fits_as_well(tmp_path):
    evidence = make_evidence(tmp_path, n_studies=120)
    found = evidence.rules.best(PACEMAKER)
    assert found is not None
    assert any(fact.kind in ("concept", "finding") for fact in found.rule)


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ((Fact("finding", "effusion"), Fact("side", "left")), "A sentence that says that left effusion is present."),
        ((Fact("absent", "edema"),), "A sentence that says that there is no edema."),
        ((Fact("section", "technique"),), "Any text in the technique."),
        (
            (Fact("concept", "sternotomy_wires"), Fact("section", "frontal")),
            "A frontal image of a study in which sternotomy wires are present.",
        ),
        (
            (Fact("change", "unchanged"), Fact("word", "tube")),
            "A sentence that says that something is unchanged since the prior and contains the word 'tube'.",
        ),
    ],
)
def test_a_rule_is_a_plain_sentence_and_can_be_read_back(rule, text):
    assert explanation_of(rule).text == text
    assert parse_rule(rule_text(tuple(sorted(rule)))) == tuple(sorted(rule))


def test_names_are_readable():
    assert readable("effusion_left_small") == "small left effusion"
    assert readable("indication_chest_pain") == "indication: chest pain"
    assert readable("Opacity/lung/left") == "opacity (lung, left)"


def _fisher(first, second) -> float:
    """One-sided p-value of Fisher's exact test, by scipy's own test."""
    table = [[int((first & second).sum()), int((first & ~second).sum())]]
    table += [[int((~first & second).sum()), int((~first & ~second).sum())]]
    return float(fisher_exact(table, alternative="greater")[1])  # pyright: ignore[reportArgumentType]
