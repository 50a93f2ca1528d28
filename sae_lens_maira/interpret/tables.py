"""The tables of a result, from scored explanations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from sae_lens_maira.interpret.evidence import Evidence
from sae_lens_maira.interpret.examples import SILENT_KINDS
from sae_lens_maira.interpret.explain import Candidate
from sae_lens_maira.interpret.explanation import Explanation, readable, rule_text
from sae_lens_maira.interpret.facts import parts_of
from sae_lens_maira.interpret.scoring import CONTROLS, Scored
from sae_lens_maira.interpret.shown import marked_text
from sae_lens_maira.measures.intervals import Interval
from sae_lens_maira.results import Column

_DIGITS = 6

COLUMNS: dict[str, Column] = {
    "explanation": Column("Explanation", "What the feature stands for, in one sentence."),
    "score": Column(
        "Detection",
        "Balanced accuracy of the explanation on patients it was not made from: 0.5 is chance.",
        "score_low",
        "score_high",
        "control_other",
        2,
    ),
    "auroc": Column("AUROC", "The same from the judge's probabilities.", "auroc_low", "auroc_high", None, 2),
    "rule_score": Column("Rule", "Detection score of the best rule, which no model wrote.", digits=2),
    "control_other": Column("Other's", "Detection score of another feature's explanation.", digits=2),
    "control_word": Column("Word", "Detection score of the best single word.", digits=2),
    "control_shuffled": Column("Shuffled", "Score of the same answers with permuted labels.", digits=2),
    "label": Column("Label", "The known concept that fits the feature best."),
    "differs": Column("Differs", "Whether label and explanation name different findings."),
    "n_studies": Column("Studies", "Studies in which the feature is on."),
}


def features_table(
    evidence: Evidence,
    features: Sequence[int],
    explanations: Mapping[int, Explanation],
    scored: Mapping[str, Mapping[int, Scored]],
    intruders: Mapping[int, Interval],
) -> pa.Table:
    """One row per feature: explanation, score, interval and controls.

    Args:
        evidence: units.
        features: that were chosen.
        explanations: of the main arm.
        scored: by arm and feature.
        intruders: results of the intruder test.
    """
    rows = []
    for feature in features:
        explanation, main, rule = explanations.get(feature), scored["main"].get(feature), _of(scored, "rule", feature)
        label = evidence.rules.best_concept(feature)
        name = None if label is None else label.rule[0].value
        row: dict[str, Any] = {
            "feature": feature,
            "explanation": explanation.text if explanation else None,
            "author": explanation.author if explanation else None,
            "concept": explanation.concept if explanation else None,
            "side": explanation.side if explanation else None,
            "change": explanation.change if explanation else None,
            "section": explanation.section if explanation else None,
            "polarity": explanation.polarity if explanation else None,
            **_score_columns(main),
            "control_shuffled": None if main is None else _number(main.shuffled),
            **{f"control_{arm}": _value(_of(scored, arm, feature)) for arm in CONTROLS if arm != "random"},
            "rule": rule.explanation.text if rule else None,
            "rule_score": _value(rule),
            "intruder": _number(intruders[feature].value) if feature in intruders else None,
            "label": None if name is None else readable(name),
            "differs": None if explanation is None or name is None else _differs(explanation, name),
            "n_studies": int(evidence.n_studies_on[feature]),
        }
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=_FEATURES)


def scores_table(scored: Sequence[Scored], truth: Sequence[Scored]) -> pa.Table:
    """One row per explanation that was scored, controls included; and the truth's score of it, where it is known."""
    known = {(one.arm, one.feature): one for one in truth}
    rows = [
        {
            "feature": one.feature,
            "arm": one.arm,
            "explanation": one.explanation.text,
            "rule": rule_text(one.explanation.rule),
            **_score_columns(one),
            "shuffled": _number(one.shuffled),
            "truth_score": _value(known.get((one.arm, one.feature))),
        }
        for one in scored
    ]
    return pa.Table.from_pylist(rows, schema=_SCORES)


def judgements_table(evidence: Evidence, scored: Sequence[Scored]) -> pa.Table:
    """One row per judgement. No text of a study is in it."""
    rows = [
        {
            "feature": one.feature,
            "arm": one.arm,
            "kind": example.kind,
            "study": evidence.corpus.units[example.unit].study,
            "place": evidence.corpus.units[example.unit].place,
            "unit": example.unit,
            "strength": _number(example.strength),
            "probability": None if found.probability is None else _number(found.probability),
            "failure": found.failure,
        }
        for one in scored
        for example, found in zip(one.examples, one.judgements, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=_JUDGEMENTS)


def examples_table(evidence: Evidence, features: Sequence[int], n_on: int, n_silent: int) -> pa.Table:
    """The units that explanations were made from, with marks; the text only of studies that may be shared."""
    rows = []
    for feature in features:
        for example in evidence.examples("explain").find(feature, n_on, n_silent):
            unit = evidence.corpus.units[example.unit]
            study = evidence.corpus.studies[unit.study]
            rows.append(
                {
                    "feature": feature,
                    "kind": example.kind,
                    "strength": _number(example.strength),
                    "study": unit.study,
                    "place": unit.place,
                    "text": marked_text(evidence.corpus, example.unit, feature) if study.shareable else None,
                }
            )
    return pa.Table.from_pylist(rows, schema=_EXAMPLES)


def candidates_table(candidates: Sequence[Candidate]) -> pa.Table:
    """One row per explanation that a model wrote, and the failures."""
    rows = [
        {
            "feature": one.feature,
            "number": one.number,
            "explanation": one.explanation.text if one.explanation else None,
            "chosen_on": _number(one.chosen_on),
            "failure": one.failure,
        }
        for one in candidates
    ]
    return pa.Table.from_pylist(rows, schema=_CANDIDATES)


def _of(scored: Mapping[str, Mapping[int, Scored]], arm: str, feature: int) -> Scored | None:
    return scored.get(arm, {}).get(feature)


def _value(one: Scored | None) -> float | None:
    return None if one is None else _number(one.detection.balanced_accuracy.value)


def _number(value: float) -> float | None:
    """A number as tables hold it: rounded, so that another order of summation gives the same bytes."""
    return round(float(value), _DIGITS) if math.isfinite(value) else None


def _differs(explanation: Explanation, label: str) -> bool:
    """Whether an explanation names another finding than the label: neither its fields nor its words have it."""
    finding = parts_of(label).finding
    said = f"{explanation.concept or ''} {explanation.text}".lower().replace("_", " ")
    return not all(word in said for word in finding.replace("_", " ").split())


def _score_columns(one: Scored | None) -> dict[str, Any]:
    if one is None:
        return dict.fromkeys([*_SCORE_FIELDS, *(f"score_{kind}" for kind in SILENT_KINDS)])
    found = one.detection
    return {
        "score": _number(found.balanced_accuracy.value),
        "score_low": _number(found.balanced_accuracy.low),
        "score_high": _number(found.balanced_accuracy.high),
        "auroc": _number(found.auroc.value),
        "auroc_low": _number(found.auroc.low),
        "auroc_high": _number(found.auroc.high),
        "sensitivity": _number(found.sensitivity),
        "specificity": _number(found.specificity),
        "n_on": found.n_on,
        "n_silent": found.n_silent,
        "n_abstained": found.n_abstained,
        **{f"score_{kind}": _number(found.by_kind.get(kind, math.nan)) for kind in SILENT_KINDS},
    }


_COUNTS = ("n_on", "n_silent", "n_abstained")
_SCORE_FIELDS = (
    *("score", "score_low", "score_high", "auroc", "auroc_low", "auroc_high", "sensitivity", "specificity"),
    *_COUNTS,
)


def _schema(**types: pa.DataType) -> pa.Schema:
    return pa.schema(list(types.items()))


_TEXT, _REAL, _WHOLE = pa.string(), pa.float64(), pa.int64()
_SCORE_TYPES = {
    **{name: _WHOLE if name in _COUNTS else _REAL for name in _SCORE_FIELDS},
    **{f"score_{kind}": _REAL for kind in SILENT_KINDS},
}
_FEATURES = _schema(
    feature=_WHOLE,
    **dict.fromkeys(("explanation", "author", "concept", "side", "change", "section", "polarity"), _TEXT),
    **_SCORE_TYPES,
    **dict.fromkeys(("control_shuffled", "control_other", "control_empty", "control_word"), _REAL),
    rule=_TEXT,
    rule_score=_REAL,
    intruder=_REAL,
    label=_TEXT,
    differs=pa.bool_(),
    n_studies=_WHOLE,
)
_SCORES = _schema(
    feature=_WHOLE, arm=_TEXT, explanation=_TEXT, rule=_TEXT, **_SCORE_TYPES, shuffled=_REAL, truth_score=_REAL
)
_JUDGEMENTS = _schema(
    feature=_WHOLE, arm=_TEXT, kind=_TEXT, study=_WHOLE, place=_TEXT, unit=_WHOLE, strength=_REAL, probability=_REAL,
    failure=_TEXT,
)  # fmt: skip
_EXAMPLES = _schema(feature=_WHOLE, kind=_TEXT, strength=_REAL, study=_WHOLE, place=_TEXT, text=_TEXT)
_CANDIDATES = _schema(feature=_WHOLE, number=_WHOLE, explanation=_TEXT, chosen_on=_REAL, failure=_TEXT)
