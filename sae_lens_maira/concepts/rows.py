"""Results as plain rows: what a part of a run keeps on disk, and what tables are made from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import false_discovery_control

from sae_lens_maira.concepts.choice import Scored, p_value
from sae_lens_maira.concepts.exam import Exam, sizes
from sae_lens_maira.concepts.settings import SUPERVISED
from sae_lens_maira.measures.intervals import percentile_interval

PROMPT_REGIONS = ("indication", "technique", "comparison", "prior_report", "prompt")
BEST_SECTION = "best_prompt_section"
_DIGITS = 6


def row_of(scored: Scored, exam: Exam) -> dict[str, Any]:
    """One pick as plain values; ``resampled`` holds its AUROC in every resample."""
    pick, item = scored.pick, exam.items[scored.pick.item]
    row: dict[str, Any] = {
        "item": pick.item,
        "concept": item.question.name,
        "kind": item.question.kind,
        "topic": item.question.topic,
        "region": item.region,
        "feature": pick.feature if pick.feature >= 0 else None,
        "pool": pick.pool if pick.feature >= 0 else None,
        "choice_auroc": _rounded(pick.auroc),
    }
    for name, values in zip(("auroc", "average_precision", "f1"), scored.scores, strict=True):
        interval = percentile_interval(float(values[0]), values[1:])
        row |= {name: _rounded(interval.value), f"{name}_low": _rounded(interval.low)}
        row |= {f"{name}_high": _rounded(interval.high)}
    row["threshold"] = None if np.isneginf(scored.threshold) else _rounded(scored.threshold)
    row["p_value"] = _rounded(p_value(scored.scores.auroc))
    row |= sizes(item, exam.is_choice, exam.patients)
    row["resampled"] = [_rounded(value) for value in scored.scores.auroc]
    return row


def with_q_values(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of one set of features with q-values after Benjamini and Hochberg (1995)."""
    if not rows:
        return []
    q_values = false_discovery_control([row["p_value"] for row in rows], method="bh")
    return [{**row, "q_value": _rounded(q)} for row, q in zip(rows, q_values, strict=True)]


def with_best_section(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of one set of features, with further ones for the best part of the prompt.

    For every question it is the part in which the chosen feature is best on the choosing half: the region is chosen by
    the same rule as the feature. ``read_in`` names the part.
    """
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["region"] in PROMPT_REGIONS:
            known = best.get(row["concept"])
            if known is None or row["choice_auroc"] > known["choice_auroc"]:
                best[row["concept"]] = row
    further = [{**row, "read_in": row["region"], "region": BEST_SECTION} for row in best.values()]
    return [*({**row, "read_in": row["region"]} for row in rows), *further]


def beside_controls(
    rows: Iterable[dict[str, Any]], controls: Mapping[str, Sequence[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Rows of latents, with the strongest control of the same item and the difference to it.

    The strongest control is the one whose chosen feature scores best; it is picked on the scoring half, in the
    controls' favor. The interval of the difference comes from the same resamples of both.
    """
    by_item: dict[tuple[str, str], list[tuple[str, dict[str, Any]]]] = {}
    for name, own in controls.items():
        if name not in SUPERVISED:
            for row in own:
                by_item.setdefault((row["concept"], row["region"]), []).append((name, row))
    found = []
    for row in rows:
        beside: dict[str, Any] = dict.fromkeys(("control", "control_auroc", "above", "above_low", "above_high"))
        candidates = by_item.get((row["concept"], row["region"]), [])
        if candidates:
            name, strongest = max(candidates, key=lambda candidate: candidate[1]["auroc"])
            gaps = _numbers(row["resampled"]) - _numbers(strongest["resampled"])
            gap = percentile_interval(float(gaps[0]), gaps[1:])
            beside = {
                "control": name,
                "control_auroc": strongest["auroc"],
                "above": _rounded(gap.value),
                "above_low": _rounded(gap.low),
                "above_high": _rounded(gap.high),
            }
        found.append({**row, **beside})
    return found


def _rounded(value: Any) -> float | None:
    return round(float(value), _DIGITS) if np.isfinite(value) else None


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values])
