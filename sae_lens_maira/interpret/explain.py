"""Explanations of features: by rules, by a model, or from a table. None of them sees a patient that is scored on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sae_lens_maira.data.study import VIEWS
from sae_lens_maira.features.interpretations import read_interpretations
from sae_lens_maira.interpret.answers import Answers
from sae_lens_maira.interpret.chat import ChatFailure, ChatRequest
from sae_lens_maira.interpret.evidence import Evidence
from sae_lens_maira.interpret.explanation import Explanation, cleaned, explanation_of
from sae_lens_maira.interpret.formats.delphi import read_explanations
from sae_lens_maira.interpret.prompts import WrittenExplanation, explain_request
from sae_lens_maira.interpret.scoring import JudgeUse, Scored, score_arm
from sae_lens_maira.interpret.shown import image_url, marked_text, show

_N_IMAGES = 4


@dataclass(frozen=True)
class Candidate:
    """An explanation that a model wrote.

    Args:
        feature: that is explained.
        number: of the candidate.
        explanation: None if there is no usable answer.
        failure: why, if there is none.
        chosen_on: balanced accuracy on the patients to choose on; NaN if it was not judged.
    """

    feature: int
    number: int
    explanation: Explanation | None
    failure: str | None = None
    chosen_on: float = np.nan


def explain_by_rules(evidence: Evidence, features: Sequence[int]) -> dict[int, Explanation]:
    """The rule that fits each feature best; features that no fact fits are left out."""
    found: dict[int, Explanation] = {}
    for feature in features:
        best, label = evidence.rules.best(feature), evidence.rules.best_concept(feature)
        if best is not None:
            explanation = explanation_of(best.rule)
            found[feature] = explanation if label is None else replace(explanation, concept=label.rule[0].value)
    return found


def explain_by_table(path: Path, features: Sequence[int], n_features: int) -> dict[int, Explanation]:
    """The explanations of a table, or of a folder of Delphi's, for features that are in it; scores are left behind.

    Raises:
        SaeFormatError: the table cannot be read.
        InterpretError: the folder holds no explanations.
    """
    if path.is_dir():
        rows = read_explanations(path)
    else:
        rows = {row.feature: row.text for row in read_interpretations(path, n_features)}
    return {feature: Explanation(cleaned(rows[feature]), "table") for feature in features if feature in rows}


def explain_by_model(
    evidence: Evidence,
    features: Sequence[int],
    answers: Answers,
    use: JudgeUse,
    *,
    sees: bool = False,
    changes: Mapping[int, str] | None = None,
) -> tuple[dict[int, Explanation], list[Candidate]]:
    """Let a model write several explanations per feature; the judge chooses on the second set of patients.

    Args:
        evidence: units and examples.
        features: to explain.
        answers: the model.
        use: the judge.
        sees: whether the model is shown images of the strongest studies.
        changes: what changes in a report when a feature is steered, by feature, as further evidence.
    """
    settings = evidence.settings
    wanted = [(feature, number) for feature in features for number in range(settings.n_candidates)]
    requests = [
        _request(evidence, feature, number, sees, (changes or {}).get(feature, "")) for feature, number in wanted
    ]
    candidates: list[Candidate] = []
    for (feature, number), answer in zip(wanted, answers.ask_all(requests, "explanations"), strict=True):
        if isinstance(answer, ChatFailure):
            candidates.append(Candidate(feature, number, None, str(answer)))
        else:
            written = WrittenExplanation.model_validate_json(answer.text)
            candidates.append(Candidate(feature, number, _explanation(written)))
    if settings.n_candidates > 1:
        candidates = _judged(evidence, candidates, use)
    best: dict[int, Candidate] = {}
    for candidate in candidates:
        known = best.get(candidate.feature)
        if candidate.explanation and (known is None or candidate.chosen_on > known.chosen_on):
            best[candidate.feature] = candidate
    return {f: found.explanation for f, found in best.items() if found.explanation is not None}, candidates


def _request(evidence: Evidence, feature: int, number: int, sees: bool, changes: str) -> ChatRequest:
    settings, corpus = evidence.settings, evidence.corpus
    examples = evidence.examples("explain").find(feature, settings.n_shown, max(settings.n_shown // 4, 1))
    on = [example.unit for example in examples if example.is_on]
    near = [example.unit for example in examples if example.kind in ("contrast", "sibling", "same_section")]
    marked = [marked_text(corpus, unit, feature) for unit in on]
    off = [f"[{show(corpus, unit).section}] {show(corpus, unit).text}" for unit in near[: settings.n_shown // 2]]
    images: tuple[str, ...] = ()
    if sees:
        studies = dict.fromkeys(corpus.units[unit].study for unit in on)
        images = tuple(image_url(corpus.studies[study], VIEWS[0]) for study in list(studies)[:_N_IMAGES])
    return explain_request(marked, off, None if number == 0 else number, changes, images)


def _judged(evidence: Evidence, candidates: list[Candidate], use: JudgeUse) -> list[Candidate]:
    """The candidates with their balanced accuracy on the second set of patients."""
    numbers = sorted({candidate.number for candidate in candidates})
    scores: dict[tuple[int, int], Scored] = {}
    for number in numbers:
        own = {c.feature: c.explanation for c in candidates if c.number == number and c.explanation is not None}
        half = max(evidence.settings.n_on // 2, 1), max(evidence.settings.n_silent // 2, 1)
        found = score_arm(evidence, own, use, "main", part="choose", n_on=half[0], n_silent=half[1])
        scores |= {(one.feature, number): one for one in found}
    return [
        replace(c, chosen_on=scores[c.feature, c.number].detection.balanced_accuracy.value)
        if (c.feature, c.number) in scores
        else c
        for c in candidates
    ]


def _explanation(written: WrittenExplanation) -> Explanation:
    return Explanation(
        cleaned(written.sentence),
        "model",
        concept=None if written.concept is None else cleaned(written.concept),
        side=written.side,
        change=written.change,
        section=written.section,
        polarity=written.polarity,
    )
