"""Results of ``concepts``, ``interpret``, ``attribute`` and ``steer`` in a gallery: figures of features, and tables.

A table is shown if it is about features or concepts and names no study, because a gallery may leave this machine and
rows about studies may quote them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from sae_lens_maira.dashboard.data_files import put
from sae_lens_maira.errors import DashboardError
from sae_lens_maira.features.interpretations import Interpretation
from sae_lens_maira.hooked.identity import fingerprint_weights
from sae_lens_maira.results import Column, Result, read_result

FEATURES = "features"
LONGEST_TABLE = 3000
"""Rows of a table that the gallery shows; longer ones are left to the table's own file."""
_ABOUT = ("feature", "concept")
_STUDIES = ("study", "study_id", "study_index", "text", "report", "patient_id")


def read_results(folders: Sequence[Path], sae: Any) -> list[Result]:
    """Open folders of results, which must be about one SAE.

    Args:
        folders: as the verbs wrote them.
        sae: the SAE, as SAE-Lens loads it.

    Raises:
        ResultError: a folder has no complete result.
        DashboardError: a result is about another SAE, or two are of the same kind.
    """
    weights = fingerprint_weights(sae)
    found: dict[str, Result] = {}
    for folder in folders:
        result = read_result(folder)
        if result.summary.get("sae") != weights:
            raise DashboardError(f"The results in '{folder}' are about another SAE; leave them out.")
        if result.kind in found:
            raise DashboardError(f"'{folder}' and '{found[result.kind].folder}' are both of kind {result.kind}.")
        found[result.kind] = result
    return list(found.values())


def explanations(results: Sequence[Result]) -> list[Interpretation]:
    """Explanations and their scores, from the result of ``interpret`` if there is one."""
    return [
        Interpretation(int(row["feature"]), str(row["explanation"]), row.get("score"))
        for result in results
        if {"explanation", "score"} <= result.columns.keys()
        for row in result.table(FEATURES).to_pylist()
        if row["explanation"]
    ]


def write_results(folder: Path, results: Sequence[Result], n_features: int) -> None:
    """Write what the gallery shows of results: ``data/results.js``.

    Args:
        folder: the gallery's.
        results: of this SAE.
        n_features: number of its features.
    """
    put(folder / "data" / "results.js", "results", [_shown(result, n_features) for result in results])


def _shown(result: Result, n_features: int) -> dict[str, Any]:
    values: dict[str, list[Any]] = {}
    if FEATURES in result.table_names:
        table = result.table(FEATURES)
        features = table.column("feature").to_pylist()
        for name in _needed(result.columns, table.column_names):
            own: list[Any] = [None] * n_features
            for feature, value in zip(features, table.column(name).to_pylist(), strict=True):
                own[feature] = _plain(value)
            values[name] = own
    return {
        "kind": result.kind,
        "columns": [{"name": name, **asdict(column)} for name, column in result.columns.items() if name in values],
        "values": values,
        "tables": {
            name: {"columns": table.column_names, "rows": [[_plain(value) for value in row.values()] for row in rows]}
            for name in result.table_names
            if name != FEATURES and _is_public(table := result.table(name))
            for rows in [table.to_pylist()]
        },
    }


def _needed(columns: dict[str, Column], present: Sequence[str]) -> list[str]:
    """The columns to show and those that stand beside them."""
    wanted = dict.fromkeys(
        name
        for own, column in columns.items()
        for name in (own, column.low, column.high, column.control)
        if name is not None and name in present
    )
    return list(wanted)


def _is_public(table: pa.Table) -> bool:
    names = table.column_names
    return table.num_rows <= LONGEST_TABLE and any(n in names for n in _ABOUT) and not any(n in names for n in _STUDIES)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, dict):
        return {str(name): _plain(entry) for name, entry in value.items()}
    return value if isinstance(value, (int, str, bool)) or value is None else str(value)
