"""Scores explanations on the patients that are kept for it, and the controls that every score stands beside.

An *arm* is a way to explain features: ``main`` (what was asked for), ``rule`` (without a model), and the controls
``other`` (another feature's explanation), ``empty``, ``word`` (the best single word) and ``random`` (rules of an SAE of
random directions). The control with shuffled labels uses the answers of ``main`` again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from sae_lens_maira.interpret.evidence import Evidence
from sae_lens_maira.interpret.examples import Example
from sae_lens_maira.interpret.explanation import Explanation, explanation_of
from sae_lens_maira.interpret.judges import Judge, Judgement, Pair
from sae_lens_maira.interpret.scores import Detection, score_detection, shuffled_score
from sae_lens_maira.interpret.shown import show
from sae_lens_maira.measures.intervals import Interval, wilson

Arm: TypeAlias = Literal["main", "rule", "other", "empty", "word", "random"]
CONTROLS: tuple[Arm, ...] = ("other", "empty", "word", "random")
_N_INTRUDER_GROUPS = 2
_N_IN_GROUP = 4


@dataclass(frozen=True)
class Scored:
    """One explanation, how it was judged, and its score.

    Args:
        arm: how the feature was explained.
        feature: the feature.
        explanation: that was scored.
        examples: units that were judged.
        judgements: of each example.
        detection: the score.
        shuffled: balanced accuracy with permuted labels.
    """

    arm: Arm
    feature: int
    explanation: Explanation
    examples: list[Example]
    judgements: list[Judgement]
    detection: Detection
    shuffled: float


@dataclass(frozen=True)
class JudgeUse:
    """A judge and how it is used.

    Args:
        judge: the judge.
        threshold: from which probability on its answer counts as yes.
        sees: whether it is shown images.
    """

    judge: Judge
    threshold: float = 0.5
    sees: bool = False


def score_arm(
    evidence: Evidence,
    explanations: Mapping[int, Explanation],
    use: JudgeUse,
    arm: Arm,
    *,
    part: str = "score",
    n_on: int | None = None,
    n_silent: int | None = None,
) -> list[Scored]:
    """Judge the explanations of some features on units of one set of patients, in one go.

    Args:
        evidence: units and examples.
        explanations: by feature.
        use: the judge.
        arm: the name of these explanations.
        part: the set of patients.
        n_on: units in which a feature is on; the settings' number if None.
        n_silent: silent units of each kind; the settings' number if None.
    """
    settings, finder = evidence.settings, evidence.examples(part)
    examples = {
        feature: finder.find(feature, n_on or settings.n_on, n_silent or settings.n_silent) for feature in explanations
    }
    pairs = [
        Pair(explanations[feature], show(evidence.corpus, example.unit, with_images=use.sees))
        for feature, own in examples.items()
        for example in own
    ]
    judgements = iter(use.judge.judge(pairs, "judge"))
    return [
        _scored(evidence, arm, feature, explanations[feature], own, [next(judgements) for _ in own], use.threshold)
        for feature, own in examples.items()
    ]


def rejudge(evidence: Evidence, scored: Sequence[Scored], use: JudgeUse) -> list[Scored]:
    """The same explanations and units before another judge."""
    pairs = [Pair(one.explanation, show(evidence.corpus, own.unit)) for one in scored for own in one.examples]
    judgements = iter(use.judge.judge(pairs, "judge"))
    return [
        _scored(
            evidence, one.arm, one.feature, one.explanation, one.examples, [next(judgements) for _ in one.examples],
            use.threshold,
        )
        for one in scored
    ]  # fmt: skip


def control_explanations(evidence: Evidence, main: Mapping[int, Explanation]) -> dict[Arm, dict[int, Explanation]]:
    """The controls' explanations of features.

    Args:
        evidence: gives the best single words.
        main: explanations of more than one feature; each gets that of the feature half the list away.
    """
    features = sorted(main)
    shift = max(len(features) // 2, 1)
    others = {f: features[(place + shift) % len(features)] for place, f in enumerate(features)}
    words = {feature: evidence.rules.best_word(feature) for feature in features}
    return {
        "other": {f: replace(main[other], author="control") for f, other in others.items() if other != f},
        "empty": {feature: Explanation("", "control", rule=()) for feature in features},
        "word": {f: explanation_of(found.rule, "control") for f, found in words.items() if found is not None},
    }


def intruder_test(evidence: Evidence, features: Sequence[int], judge: Judge) -> dict[int, Interval]:
    """For each feature, how often the judge finds the one unit of five in which the feature is silent; chance is 0.2.

    No explanation is shown. Silent units come from the sections in which the feature is on. An abstention is wrong.
    """
    finder = evidence.examples("score")
    groups, truth, owners = [], [], []
    for feature in features:
        rng = np.random.default_rng([evidence.settings.seed, feature, 2])
        found = finder.find(feature, _N_IN_GROUP * _N_INTRUDER_GROUPS, _N_INTRUDER_GROUPS)
        on = [example.unit for example in found if example.is_on]
        silent = [example.unit for example in found if example.kind in ("same_section", "random")]
        for number in range(min(len(on) // _N_IN_GROUP, len(silent))):
            units = [*on[number :: len(on) // _N_IN_GROUP][:_N_IN_GROUP], silent[number]]
            order = rng.permutation(len(units))
            groups.append([show(evidence.corpus, units[place]) for place in order])
            truth.append(int(np.flatnonzero(order == _N_IN_GROUP)[0]))
            owners.append(feature)
    answers = judge.find_intruders(groups)
    right: dict[int, list[bool]] = {}
    for feature, answer, wanted in zip(owners, answers, truth, strict=True):
        right.setdefault(feature, []).append(answer == wanted)
    return {feature: wilson(sum(own), len(own)) for feature, own in right.items()}


def _scored(
    evidence: Evidence,
    arm: Arm,
    feature: int,
    explanation: Explanation,
    examples: list[Example],
    judgements: list[Judgement],
    threshold: float,
) -> Scored:
    is_on = np.array([example.is_on for example in examples], dtype=bool)
    values = [np.nan if found.probability is None else found.probability for found in judgements]
    probabilities = np.array(values, dtype=np.float64)
    patients = (
        evidence.corpus.patients[[example.unit for example in examples]] if examples else np.zeros(0, dtype=object)
    )
    kinds = [example.kind for example in examples]
    detection = score_detection(is_on, probabilities, patients, kinds, threshold, seed=feature)
    can_shuffle = detection.n_on > 0 and detection.n_silent > 0
    shuffled = shuffled_score(is_on, probabilities, threshold, seed=feature) if can_shuffle else np.nan
    return Scored(arm, feature, explanation, examples, judgements, detection, shuffled)
