"""The tables of an experiment: what each arm does to each concept, dose curves, and one row per feature."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from sae_lens_maira.hooked.dictionary import Dictionary
from sae_lens_maira.results import Column
from sae_lens_maira.steering.arms import Arm, vector_of
from sae_lens_maira.steering.outcomes import Outcomes, interval_of, off_target, on_target
from sae_lens_maira.steering.world import World

COLUMNS = {
    "concept": Column("Writes", "The concept that this latent was chosen to write."),
    "rise": Column(
        "Rise",
        "Points by which the concept's mention rises in reports of held-out studies that do not show it.",
        low="rise_low",
        high="rise_high",
        control="rise_random",
        digits=0,
    ),
    "off_target": Column(
        "Elsewhere",
        "Points by which the mention of every other concept changes, on average over concepts and studies.",
        low="off_target_low",
        high="off_target_high",
        digits=1,
    ),
    "removal": Column(
        "Removal",
        "Points by which the concept's mention falls where it is shown, when the latent is ablated.",
        low="removal_low",
        high="removal_high",
        digits=0,
    ),
    "dose": Column("Dose", "What was added, in units of the latent's strength.", digits=2),
}


def arm_row(arm: Arm, outcomes: Outcomes, index: int, world: World, dictionary: Dictionary) -> dict[str, Any]:
    """One row of the table ``arms`` or ``curves``: what an arm does to its concept and to all others."""
    column = world.concepts.index(arm.concept)
    inserted, changed = on_target(outcomes, index, column), off_target(outcomes, index, column)
    rise, off = interval_of(inserted, outcomes.patients), interval_of(_row_means(changed), outcomes.patients)
    per_concept = 100 * np.nanmean(np.where(np.isnan(changed), 0.0, changed), axis=0)
    worst = int(per_concept.argmax())
    by_relation = {
        relation: [
            k for k, name in enumerate(world.concepts) if k != column and world.relation(arm.concept, name) == relation
        ]
        for relation in ("family", "side", "other")
    }
    return {
        "concept": arm.concept,
        "arm": arm.name,
        "features": list(arm.proposal.features),
        "doses": [round(float(arm.dose * weight), 6) for weight in arm.proposal.weights],
        "multiple": float(arm.dose),
        "norm": float(vector_of(arm.edits, dictionary).norm()),
        "n_studies": int(np.isfinite(inserted).sum()),
        **_interval("rise", rise),
        **_interval("off_target", off),
        "off_target_worst": float(per_concept[worst]),
        "worst_concept": world.concepts[worst],
        **{f"off_target_{name}": _mean(per_concept[own]) for name, own in by_relation.items()},
        "specificity": _ratio(rise.value, rise.value + float(per_concept.sum())),
        "share_wrong_way": _mean(inserted[np.isfinite(inserted)] < 0),
        "share_coherent": _mean(outcomes.coherent[:, index]),
        "share_looped": _mean(outcomes.looped[:, index]),
        "share_unread": _mean(outcomes.unread[:, index]),
        "nats_per_token": _mean(outcomes.nats[np.isfinite(outcomes.nats[:, index]), index]),
        "length_ratio": _ratio(float(outcomes.n_tokens[:, index].mean()), float(outcomes.tokens_before.mean())),
        "n_missed_positions": int(outcomes.missed[:, index].sum()),
    }


def arm_table(arms: Sequence[Arm], outcomes: Outcomes, world: World, dictionary: Dictionary) -> pa.Table:
    """All arms of a stage."""
    return pa.Table.from_pylist([arm_row(arm, outcomes, i, world, dictionary) for i, arm in enumerate(arms)])


def slope_table(arms: Sequence[Arm], outcomes: Outcomes, world: World) -> pa.Table:
    """How each study answers to the dose (Tan et al. 2024, arXiv 2407.12404): one row per concept and proposal.

    The slope of a study is that of the least-squares line of its mentions over the multiples, 0 included; a study goes
    the wrong way if its slope is negative.
    """
    rows: list[dict[str, Any]] = []
    groups: dict[tuple[str, Any], list[int]] = {}
    for index, arm in enumerate(arms):
        groups.setdefault((arm.concept, arm.proposal), []).append(index)
    for (concept, proposal), own in groups.items():
        column = world.concepts.index(concept)
        doses = np.array([0.0, *(arms[index].dose for index in own)])
        said = np.stack(
            [outcomes.before[:, column], *(outcomes.mentions[:, index, column] for index in own)], axis=1
        ).astype(float)
        absent = ~outcomes.shown[:, column]
        centered = doses - doses.mean()
        slopes = (said[absent] - said[absent].mean(axis=1, keepdims=True)) @ centered / (centered @ centered)
        patients = [patient for patient, is_absent in zip(outcomes.patients, absent, strict=True) if is_absent]
        rows.append(
            {
                "concept": concept,
                "kind": proposal.kind,
                "features": list(proposal.features),
                **_interval("slope", interval_of(slopes, patients)),
                "share_wrong_way": _mean(slopes < 0),
            }
        )
    return pa.Table.from_pylist(rows)


def removal_table(arms: Sequence[Arm], outcomes: Outcomes, world: World) -> pa.Table:
    """The fall of each concept's mention where it is shown, when latents are ablated."""
    rows: list[dict[str, Any]] = []
    plain = {arm.concept: index for index, arm in enumerate(arms) if not arm.edits}
    for index, arm in enumerate(arms):
        if not arm.edits:
            continue
        column, none = world.concepts.index(arm.concept), plain[arm.concept]
        before, after = outcomes.mentions[:, none], outcomes.mentions[:, index]
        fall = before[:, column].astype(float) - after[:, column]
        changed = (before != after).astype(float)
        changed[:, column] = np.nan
        rows.append(
            {
                "concept": arm.concept,
                "arm": arm.name,
                "features": list(arm.proposal.features),
                "n_studies": len(fall),
                "mentioned_before": 100 * float(before[:, column].mean()),
                **_interval("fall", interval_of(fall, outcomes.patients)),
                **_interval("off_target", interval_of(_row_means(changed), outcomes.patients)),
                "share_coherent": _mean(outcomes.coherent[:, index]),
            }
        )
    return pa.Table.from_pylist(rows)


def feature_table(arms: pa.Table, removal: pa.Table | None) -> pa.Table:
    """One row per feature that was chosen alone for a concept; the concept that it raises most if there are several."""
    tested = arms.to_pylist()
    randoms = {row["concept"]: row["rise"] for row in tested if row["arm"] == "random_direction"}
    falls = {row["concept"]: row for row in removal.to_pylist() if row["arm"] == "ablation_1"} if removal else {}
    best: dict[int, dict[str, Any]] = {}
    for row in tested:
        if row["arm"] == "latent":
            feature = row["features"][0]
            if feature not in best or row["rise"] > best[feature]["rise"]:
                best[feature] = row
    rows = []
    for feature, row in sorted(best.items()):
        fall = falls.get(row["concept"], {})
        rows.append(
            {
                "feature": feature,
                "concept": row["concept"],
                "dose": row["doses"][0],
                **{name: row[name] for name in ("rise", "rise_low", "rise_high")},
                "rise_random": randoms.get(row["concept"], math.nan),
                **{name: row[name] for name in ("off_target", "off_target_low", "off_target_high")},
                "worst_concept": row["worst_concept"],
                "off_target_worst": row["off_target_worst"],
                "removal": fall.get("fall", math.nan),
                "removal_low": fall.get("fall_low", math.nan),
                "removal_high": fall.get("fall_high", math.nan),
            }
        )
    return pa.Table.from_pylist(rows)


def figures(arms: pa.Table, removal: pa.Table | None) -> dict[str, Any]:
    """The main figures: for how many concepts each arm reaches what is wanted."""
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for row in arms.to_pylist():
        by_arm.setdefault(row["arm"], []).append(row)
    found: dict[str, Any] = {}
    for name, rows in by_arm.items():
        found[name] = {
            "n_concepts": len(rows),
            "n_raised_60_with_5_elsewhere": sum(row["rise"] >= 60 and row["off_target"] <= 5 for row in rows),
            "n_raised_10": sum(row["rise"] > 10 for row in rows),
            "median_rise": _round(np.median([row["rise"] for row in rows])),
            "mean_off_target": _round(np.mean([row["off_target"] for row in rows])),
        }
    for row in removal.to_pylist() if removal else []:
        own = found.setdefault(row["arm"], {"n_concepts": 0, "n_lowered_60": 0})
        own["n_concepts"] += 1
        own["n_lowered_60"] += row["fall"] >= 60
    return found


def describe(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The main figures as a table for the terminal."""
    lines = [f"{'arm':22}{'concepts':>10}{'>=60 up, <=5 off':>18}{'>10 up':>9}{'median rise':>13}{'elsewhere':>11}"]
    for name, own in found.items():
        if "n_lowered_60" in own:
            lines.append(f"{name:22}{own['n_concepts']:>10}   lowered by 60 points or more: {own['n_lowered_60']}")
        else:
            lines.append(
                f"{name:22}{own['n_concepts']:>10}{own['n_raised_60_with_5_elsewhere']:>18}{own['n_raised_10']:>9}"
                f"{own['median_rise']:>13.1f}{own['mean_off_target']:>11.1f}"
            )
    return "\n".join(lines)


def _row_means(values: Float[np.ndarray, "n_studies n_concepts"]) -> Float[np.ndarray, " n_studies"]:
    return np.nanmean(values, axis=1)


def _interval(name: str, found: Any) -> dict[str, float]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _round(value: Any) -> float:
    return round(float(value), 3)
