"""The tables of a result: one row per latent, and one row per question, region and set of features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from sae_lens_maira.concepts.evaluate import LATENTS
from sae_lens_maira.concepts.rows import BEST_SECTION, beside_controls, with_best_section, with_q_values
from sae_lens_maira.results import Column

_SCORES = tuple(f"{score}{end}" for score in ("auroc", "average_precision", "f1") for end in ("", "_low", "_high"))
_CONCEPTS = pa.schema(
    [
        *((name, pa.string()) for name in ("concept", "kind", "topic", "region", "read_in", "features")),
        ("feature", pa.int32()),
        ("pool", pa.string()),
        ("choice_auroc", pa.float64()),
        *((name, pa.float64()) for name in (*_SCORES, "threshold", "p_value", "q_value")),
        *((name, pa.int32()) for name in ("n_positive", "n_negative", "n_patients")),
        ("control", pa.string()),
        *((name, pa.float64()) for name in ("control_auroc", "above", "above_low", "above_high")),
    ]
)
_OF_ASPECT = (
    *("region", "pool", "choice_auroc", "auroc", "auroc_low", "auroc_high", "average_precision", "f1", "threshold"),
    *("q_value", "n_positive", "control", "control_auroc"),
)
_TEXTS = ("region", "pool", "control")

COLUMNS: dict[str, Column] = {
    "concept": Column(
        "Concept", "The label, or group of labels, that the feature detects best; chosen on other patients."
    ),
    "auroc": Column(
        "AUROC",
        "Area under the ROC curve for that concept, on patients that did not choose it.",
        low="auroc_low",
        high="auroc_high",
        control="control_auroc",
        digits=3,
    ),
    "region": Column("Read in", "The part of the study in which the feature detects the concept best."),
    "control_auroc": Column(
        "Control", "AUROC of the strongest control for the same concept and region, chosen by the same rule.", digits=3
    ),
    "q_value": Column("q", "False discovery rate at which the AUROC is above one half.", digits=4),
    "image": Column("Concept in the images", "The concept that the feature detects best at the image tokens alone."),
    "image_auroc": Column(
        "AUROC in the images",
        "Area under the ROC curve for that concept, at the image tokens alone.",
        low="image_auroc_low",
        high="image_auroc_high",
        control="image_control_auroc",
        digits=3,
    ),
    "change": Column("Change", "The change that the feature detects best among studies that show the finding."),
    "change_auroc": Column(
        "AUROC of the change",
        "Area under the ROC curve for that change.",
        low="change_auroc_low",
        high="change_auroc_high",
        control="change_control_auroc",
        digits=3,
    ),
}


def concept_rows(parts: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of all sets of features, latents first and beside their controls."""
    rows = {name: with_best_section(with_q_values(part["rows"])) for name, part in parts.items()}
    controls = {name: own for name, own in rows.items() if name != LATENTS}
    rows[LATENTS] = beside_controls(rows[LATENTS], controls)
    return [{**row, "features": name} for name, own in rows.items() for row in own]


def concept_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Table ``concepts``."""
    return pa.table({field.name: [row.get(field.name) for row in rows] for field in _CONCEPTS}, schema=_CONCEPTS)


def feature_table(part: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Table ``features``: for every latent its best concept, its best one at the image tokens, and its best change.

    Args:
        part: the part of the latents.
        rows: from :func:`concept_rows`; they know the controls of every item.
    """
    beside = {row["item"]: row for row in rows if row["features"] == LATENTS and row["region"] != BEST_SECTION}
    columns: dict[str, pa.Array] = {"feature": pa.array(range(part["n_features"]), pa.int32())}
    for aspect, own in part["features"].items():
        prefix = "" if aspect == "concept" else f"{aspect}_"
        by_feature = {row["feature"]: {**beside.get(row["item"], {}), **row} for row in with_q_values(own)}
        found = [by_feature.get(feature, {}) for feature in range(part["n_features"])]
        columns[aspect] = pa.array([row.get("concept") for row in found], pa.string())
        for name in _OF_ASPECT:
            if aspect == "image" and name == "region":
                continue
            kind = pa.string() if name in _TEXTS else pa.int32() if name == "n_positive" else pa.float64()
            columns[f"{prefix}{name}"] = pa.array([row.get(name) for row in found], kind)
    return pa.table(columns)
