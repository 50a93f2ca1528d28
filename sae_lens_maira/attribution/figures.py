"""The main figures of an attribution: how often drivers are right, which map method wins, and which fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sae_lens_maira.attribution.shares import DRIVERS, Shares
from sae_lens_maira.measures.intervals import Interval, bootstrap_mean, wilson

SMALL = 0.25
"""Boxes are small below this share of the image; in a larger one, any map points at it easily."""
CONTROLS = ("random", "center")
MIN_PER_LABEL = 2
"""Reported maps that a label needs to count."""


def carrier_figures(table: pa.Table, swap: str, min_auroc: float) -> dict[str, Any]:
    """How often the largest share is the expected one, for features and for controls.

    Args:
        table: of carriers.
        swap: kind of swap.
        min_auroc: only carriers that were chosen with at least this area.
    """
    rows = [row for row in table.to_pylist() if row["swap"] == swap and row["expected"] is not None]
    carriers = [row for row in rows if row["chosen_auroc"] >= min_auroc]
    return {
        "features": _right([row for row in carriers if not row["is_control"]]),
        **{
            f"features, expected {driver}": _right(
                [row for row in carriers if not row["is_control"] and row["expected"] == driver]
            )
            for driver in DRIVERS
            if any(row["expected"] == driver for row in carriers)
        },
        "labels' best features": _right([row for row in carriers if not row["is_control"] and row["is_best"]]),
        "random directions that carry a label": _right([row for row in carriers if row["is_control"]]),
        "labels that no feature carries": sorted(
            {row["label"] for row in rows} - {row["label"] for row in carriers if not row["is_control"]}
        ),
    }


def driver_figures(
    shares: Shares, carriers: pa.Table, swap: str, n_features: int, min_auroc: float
) -> dict[str, dict[str, Any]]:
    """What drives features, random directions and carriers under one kind of swap.

    Args:
        shares: of features and controls.
        carriers: the table of carriers.
        swap: the kind of swap.
        n_features: without the controls.
        min_auroc: carriers' threshold.
    """
    return {
        "features": driver_counts(shares, range(n_features)),
        "random directions": driver_counts(shares, range(n_features, shares.own.shape[1])),
        "carriers": carrier_figures(carriers, swap, min_auroc),
    }


def next_figures(units: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How well estimates of the effects on next tokens agree with the exact ones: the mean correlation."""
    agreement = float(np.mean([unit["agreement"] for unit in units])) if units else None
    return {"agreement": agreement, "n_studies": len(units)}


def driver_counts(shares: Shares, features: range) -> dict[str, dict[str, int]]:
    """At each place, how many features have which driver; the controls' counts are a base rate."""
    from sae_lens_maira.attribution.combinations import PLACES

    found: dict[str, dict[str, int]] = {}
    for number, place in enumerate(PLACES):
        drivers = [shares.driver(number, feature) or "none" for feature in features]
        found[place] = {name: drivers.count(name) for name in (*DRIVERS, "none")}
    return found


def winning_method(maps: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> str | None:
    """The method with the lowest mean deletion on the maps to choose on; None if there is no map."""
    means = {
        method: values.mean()
        for method in methods
        if len(values := _finite(maps, "deletion", method=method, part="chosen"))
    }
    return min(means, key=lambda method: float(means[method])) if means else None


def map_figures(maps: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Each method's figures on the reported maps, controls included.

    Deletion counts labels: how many have a lower mean deletion than both the random map and the center prior. Pointing
    and energy count maps whose box is small. Mapped features without a label count as labels of their own.
    """
    reported = [row for row in maps if row["part"] == "reported"]
    labels = sorted({_name(row) for row in reported})
    found: dict[str, dict[str, Any]] = {}
    for method in (*methods, *CONTROLS):
        own = [row for row in reported if row["method"] == method]
        boxed = [row for row in own if row.get("box_share") and row["box_share"] < SMALL]
        better, n_labels = 0, 0
        for label in labels:
            means = {
                name: _finite([row for row in reported if _name(row) == label], "deletion", method=name)
                for name in (method, *CONTROLS)
            }
            if all(len(values) >= MIN_PER_LABEL for values in means.values()):
                n_labels += 1
                better += all(means[method].mean() < means[name].mean() for name in CONTROLS if name != method)
        patients = [row["patient"] for row in own]
        small_patients = [row["patient"] for row in boxed]
        found[method] = {
            "deletion": _mean(own, "deletion", patients),
            "insertion": _mean(own, "insertion", patients),
            "deletion_embeddings": _mean(own, "deletion_embeddings", patients),
            "labels_better_than_controls": [better, n_labels],
            "pointing": _mean(boxed, "box_pointing", small_patients),
            "pointing_by_chance": _mean(boxed, "box_share", small_patients),
            "energy_over_share": _interval(
                np.array([row["box_energy"] / row["box_share"] for row in boxed]), small_patients
            ),
            "iou": _mean(boxed, "box_iou", small_patients),
            "agreement": _mean(own, "agreement", patients),
            "agreement_random_features": _mean(own, "agreement_random", patients),
            "n_maps": len(own),
            "n_small_boxes": len(boxed),
        }
    boxes = [row for row in reported if row["method"] == (methods[0] if methods else "") and "left_inside" in row]
    found["boxes erased"] = {
        "left_inside": _mean(boxes, "left_inside", [row["patient"] for row in boxes]),
        "left_outside": _mean(boxes, "left_outside", [row["patient"] for row in boxes]),
    }
    return found


def by_label(maps: Sequence[Mapping[str, Any]], method: str) -> list[dict[str, Any]]:
    """The reported figures of one method for each label."""
    reported = [row for row in maps if row["part"] == "reported"]
    rows = []
    for label in sorted({_name(row) for row in reported}):
        own = [row for row in reported if _name(row) == label]
        chosen = [row for row in own if row["method"] == method]
        boxed = [row for row in chosen if row.get("box_share")]
        rows.append(
            {
                "label": label,
                "feature": chosen[0]["feature"] if chosen else None,
                "n_maps": len(chosen),
                "box_share": _average(boxed, "box_share"),
                "pointing": _average(boxed, "box_pointing"),
                "energy_over_share": float(np.mean([row["box_energy"] / row["box_share"] for row in boxed]))
                if boxed
                else None,
                "iou": _average(boxed, "box_iou"),
                "deletion": _average(chosen, "deletion"),
                **{
                    f"deletion_{name}": _average([row for row in own if row["method"] == name], "deletion")
                    for name in CONTROLS
                },
            }
        )
    return rows


def _right(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    driven = [row for row in rows if row["is_right"] is not None]
    n_right = sum(bool(row["is_right"]) for row in driven)
    return {"right": list(_rounded(wilson(n_right, len(driven)))), "n_right": n_right, "n": len(driven)}


def _name(row: Mapping[str, Any]) -> str:
    return row["label"] or f"feature {row['feature']}"


def _finite(rows: Sequence[Mapping[str, Any]], column: str, **wanted: str) -> np.ndarray:
    values = [row.get(column) for row in rows if all(row[name] == value for name, value in wanted.items())]
    return np.array([value for value in values if value is not None], dtype=np.float64)


def _mean(rows: Sequence[Mapping[str, Any]], column: str, patients: Sequence[str]) -> list[float | None]:
    values = np.array([np.nan if row.get(column) is None else row[column] for row in rows], dtype=np.float64)
    return _interval(values, patients)


def _interval(values: np.ndarray, patients: Sequence[str]) -> list[float | None]:
    return _rounded(bootstrap_mean(values, patients)) if len(values) else [None, None, None]


def _rounded(interval: Interval) -> list[float | None]:
    return [round(float(value), 4) if np.isfinite(value) else None for value in interval]


def _average(rows: Sequence[Mapping[str, Any]], column: str) -> float | None:
    values = _finite(rows, column)
    return round(float(values.mean()), 4) if len(values) else None
