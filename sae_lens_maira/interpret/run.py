"""From evidence to a result: audit the judge, explain, score, compare with the controls, write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sae_lens_maira.interpret.answers import Answers
from sae_lens_maira.interpret.audit import Audit, corpus_pairs, grammar_pairs, run_audit
from sae_lens_maira.interpret.evidence import PARTS, Evidence
from sae_lens_maira.interpret.explain import Candidate, explain_by_model, explain_by_rules, explain_by_table
from sae_lens_maira.interpret.explanation import Explanation
from sae_lens_maira.interpret.judges import TruthJudge
from sae_lens_maira.interpret.scoring import (
    Arm,
    JudgeUse,
    Scored,
    control_explanations,
    intruder_test,
    rejudge,
    score_arm,
)
from sae_lens_maira.interpret.settings import InterpretSettings, TableConfig
from sae_lens_maira.interpret.tables import (
    COLUMNS,
    candidates_table,
    examples_table,
    features_table,
    judgements_table,
    scores_table,
)
from sae_lens_maira.interpret.truth import check_naming, compare_with_truth, is_phantom
from sae_lens_maira.measures.intervals import Interval, bootstrap_mean, wilson
from sae_lens_maira.results import Result, write_result

KIND = "interpretation"


@dataclass(frozen=True)
class Models:
    """Who explains and who judges.

    Args:
        judge: the judge.
        judge_answers: the judge's model and answers; None for the truth.
        explainer_answers: the explainer's; None for rules and tables.
        explainer_sees: whether it is shown images.
    """

    judge: JudgeUse
    judge_answers: Answers | None = None
    explainer_answers: Answers | None = None
    explainer_sees: bool = False

    @property
    def has_one_model(self) -> bool:
        """Whether the explainer is also the judge."""
        names = [own.chat.name for own in (self.judge_answers, self.explainer_answers) if own is not None]
        return len(names) == 2 and names[0] == names[1]


@dataclass(frozen=True)
class Findings:
    """What a run has found, before it is written.

    Args:
        features: that were chosen.
        explanations: of the main arm.
        candidates: all that a model wrote.
        scored: by arm.
        truth: the same before the truth, where it is known and was not the judge.
        intruders: results of the intruder test.
        audit: of the judge; None for the truth.
        use: the judge with the audit's threshold.
    """

    features: list[int]
    explanations: dict[int, Explanation]
    candidates: list[Candidate]
    scored: dict[Arm, list[Scored]]
    truth: list[Scored]
    intruders: dict[int, Interval]
    audit: Audit | None
    use: JudgeUse


def interpret_features(
    evidence: Evidence,
    random: Evidence,
    models: Models,
    *,
    accept_weak_judge: bool = False,
    changes: Mapping[int, str] | None = None,
) -> Findings:
    """Explain and score features.

    Args:
        evidence: of the SAE.
        random: of random directions.
        models: who explains and judges.
        accept_weak_judge: go on with a judge that the audit would refuse.
        changes: what changes in a report when a feature is steered, by feature.

    Raises:
        InterpretError: the judge is too weak, or the budget is spent.
    """
    settings, use = evidence.settings, models.judge
    audit = None
    if models.judge_answers is None:
        use = known_truth(evidence)
    if models.judge_answers is not None:
        audit = audit_judge(evidence, use)
        if not accept_weak_judge:
            audit.check(settings.least_accuracy)
        use = replace(use, threshold=audit.threshold)
    features = evidence.choose_features()
    rules = explain_by_rules(evidence, features)
    explanations, candidates = rules, []
    if models.explainer_answers is not None:
        answers, sees = models.explainer_answers, models.explainer_sees
        explanations, candidates = explain_by_model(evidence, features, answers, use, sees=sees, changes=changes)
    elif isinstance(settings.explainer, TableConfig):
        explanations = explain_by_table(Path(settings.explainer.path), features, evidence.corpus.n_features)
    scored: dict[Arm, list[Scored]] = {"main": score_arm(evidence, explanations, use, "main")}
    scored["rule"] = scored["main"] if explanations is rules else score_arm(evidence, rules, use, "rule")
    controlled = _some(sorted(explanations), settings, is_free=models.judge_answers is None)
    for arm, own in control_explanations(evidence, {f: explanations[f] for f in controlled}).items():
        scored[arm] = score_arm(evidence, own, use, arm)
    drawn = random.choose_features() if settings.features is None else []
    drawn = _some(drawn, settings, is_free=models.judge_answers is None)
    scored["random"] = score_arm(random, explain_by_rules(random, drawn), use, "random")
    intruders = intruder_test(evidence, controlled, use.judge) if settings.intruder else {}
    truth = truth_of(evidence, scored) if models.judge_answers is not None and is_phantom(evidence) else []
    return Findings(features, explanations, candidates, scored, truth, intruders, audit, use)


def audit_judge(evidence: Evidence, use: JudgeUse) -> Audit:
    """Ask the judge pairs whose truth is known."""
    settings = evidence.settings
    pairs = grammar_pairs(settings.n_audit, settings.seed)
    pairs += corpus_pairs(evidence.corpus, evidence.counterfactuals, settings.n_audit // 5, with_images=use.sees)
    return run_audit(use.judge, pairs)


def truth_of(evidence: Evidence, scored: Mapping[Arm, Sequence[Scored]]) -> list[Scored]:
    """The explanations of the SAE's features before the judge that cannot err."""
    arms: tuple[Arm, ...] = ("main", "other", "word", "empty")
    return rejudge(evidence, [one for arm in arms for one in scored.get(arm, [])], known_truth(evidence))


def known_truth(evidence: Evidence) -> JudgeUse:
    """The judge that cannot err, with all facts of the corpus."""
    return JudgeUse(TruthJudge({fact for unit in evidence.corpus.units for fact in unit.facts}))


def write_findings(
    folder: Path, evidence: Evidence, findings: Findings, models: Models, facts: Mapping[str, Any]
) -> Result:
    """Write the result's folder.

    Args:
        folder: of the result.
        evidence: units.
        findings: what was found.
        models: who explained and judged.
        facts: what identifies SAE, model and source, for the summary.
    """
    arms = {arm: own for arm, own in findings.scored.items() if arm != "rule" or own is not findings.scored["main"]}
    flat = [one for own in arms.values() for one in own]
    by_arm = {arm: {one.feature: one for one in own} for arm, own in findings.scored.items()}
    settings = evidence.settings
    tables = {
        "features": features_table(evidence, findings.features, findings.explanations, by_arm, findings.intruders),
        "scores": scores_table(flat, findings.truth),
        "judgements": judgements_table(evidence, [one for one in flat if one.arm != "random"]),
        "examples": examples_table(evidence, findings.features, settings.n_shown, settings.n_silent),
        "candidates": candidates_table(findings.candidates),
    }
    return write_result(folder, KIND, tables, summarize(evidence, findings, models, facts), columns=COLUMNS)


def summarize(evidence: Evidence, findings: Findings, models: Models, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The summary: settings, splits, the audit, and the main figures with their controls."""
    corpus = evidence.corpus
    answers = {"judge": models.judge_answers, "explainer": models.explainer_answers}
    main = findings.scored["main"]
    summary: dict[str, Any] = {
        **facts,
        "settings": _portable(evidence.settings),
        "split": {
            part: {
                "n_studies": len(np.unique(corpus.study_of_unit[evidence.masks[part]])),
                "n_units": int(evidence.masks[part].sum()),
            }
            for part in PARTS
        },
        "judge": findings.use.judge.name,
        "threshold": findings.use.threshold,
        "one_model_explains_and_judges": models.has_one_model,
        "audit": None if findings.audit is None else _plain(asdict(findings.audit)),
        "n_features": len(findings.features),
        "n_unexplained": len(findings.features) - len(findings.explanations),
        "arms": {arm: _figures(own) for arm, own in findings.scored.items()},
        "shuffled": _plain(bootstrap_mean(np.array([one.shuffled for one in main]))),
        "intruder": _plain(_mean_share(findings.intruders)),
        "models": {
            name: {
                "name": own.chat.name,
                "requests": dict(own.record.requests),
                "n_prompt": own.record.n_prompt,
                "n_completion": own.record.n_completion,
                "degraded": own.record.degraded,
                "failures": [list(pair) for pair in own.record.failures],
            }
            for name, own in answers.items()
            if own is not None
        },
    }
    if is_phantom(evidence):
        rules = {one.feature: one.explanation for one in findings.scored["rule"]}
        naming = check_naming(evidence, rules, findings.features)
        summary["rules_name_the_concept"] = _plain(asdict(naming))
    if findings.truth:
        order: tuple[Arm, ...] = ("main", "other", "word", "empty")
        judged = [one for arm in order for one in findings.scored.get(arm, [])]
        summary["score_against_truth"] = _plain(compare_with_truth(judged, findings.truth))
    return summary


def describe_arms(scored: Mapping[Arm, Sequence[Scored]]) -> list[str]:
    """One line per arm: mean balanced accuracy and its interval over features."""
    lines = []
    for arm, own in scored.items():
        values = np.array([one.detection.balanced_accuracy.value for one in own], dtype=np.float64)
        lines.append(f"{arm:8s} {bootstrap_mean(values)!s} over {len(own)} features")
    return lines


def _some(features: Sequence[int], settings: InterpretSettings, *, is_free: bool) -> list[int]:
    """The features whose controls are scored: all if that is free, else evenly spread ones."""
    if is_free or len(features) <= settings.n_controls:
        return list(features)
    places = np.linspace(0, len(features) - 1, settings.n_controls).astype(int) if settings.n_controls else []
    return [features[place] for place in places]


def _figures(scored: Sequence[Scored]) -> dict[str, Any]:
    """The mean score over features with its interval."""
    values = {
        "balanced_accuracy": [one.detection.balanced_accuracy.value for one in scored],
        "auroc": [one.detection.auroc.value for one in scored],
    }
    means = {name: _plain(bootstrap_mean(np.array(own, dtype=np.float64))) for name, own in values.items()}
    n_judged = sum(len(one.judgements) for one in scored)
    n_abstained = sum(one.detection.n_abstained for one in scored)
    return {**means, "n_features": len(scored), "n_judgements": n_judged, "n_abstained": n_abstained}


def _mean_share(intruders: Mapping[int, Interval]) -> Interval:
    right = [found.value for found in intruders.values()]
    return bootstrap_mean(np.array(right, dtype=np.float64)) if right else wilson(0, 0)


def _portable(settings: InterpretSettings) -> dict[str, Any]:
    """The settings without what belongs to this machine: addresses, folders and limits of spending."""
    values = settings.to_dict()
    for name in ("judge", "explainer"):
        own = values[name]
        values[name] = {k: Path(str(v)).name if k == "path" else v for k, v in own.items() if k != "url"}
    return {name: value for name, value in values.items() if name not in ("most_requests", "most_money")}


def _plain(value: Any) -> Any:
    """Plain values for JSON: numbers rounded, and None in place of NaN."""
    if isinstance(value, Interval):
        return {name: _plain(number) for name, number in value._asdict().items()}
    if isinstance(value, dict):
        return {str(key): _plain(own) for key, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(own) for own in value]
    if isinstance(value, float):
        return round(value, 6) if np.isfinite(value) else None
    return value
