"""Descriptions of features as one tidy table (feature, text, score), read from files with various column names.

Reads CSV, TSV, JSON (a list of objects, or an object by feature), JSON lines and Parquet. Columns are recognized by
name; if there is no column of features or of texts, the error lists the columns that were found.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sae_lens_maira.errors import SaeFormatError

TABLE_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
FEATURE_NAMES = (
    *("feature", "feature_id", "feature_idx", "feature_index", "latent", "latent_id", "latent_idx", "latent_index"),
    *("neuron", "neuron_id", "sae_feature", "index", "idx", "id"),
)
TEXT_NAMES = ("text", "interpretation", "explanation", "description", "label", "summary", "concept", "name")
SCORE_NAMES = (
    *("score", "detection_score", "f1", "f1_score", "balanced_accuracy", "accuracy", "detection_accuracy", "auc"),
    *("auroc", "confidence"),
)
NOT_TABLES = ("config.json", "cfg.json", "runner_cfg.json")


@dataclass(frozen=True)
class Interpretation:
    """What one feature stands for, and the score of this description (None if it was not scored)."""

    feature: int
    text: str
    score: float | None


def find_tables(names: Sequence[str]) -> list[str]:
    """The file names that look like tables of interpretations."""
    tables = [
        name
        for name in names
        if PurePosixPath(name).suffix in TABLE_SUFFIXES and PurePosixPath(name).name not in NOT_TABLES
    ]
    telling = [name for name in tables if re.search("interpret|expla|descri|label", PurePosixPath(name).name.lower())]
    return telling or tables


def read_interpretations(path: str | Path, n_features: int | None = None) -> list[Interpretation]:
    """Read a table, ordered by feature.

    Args:
        n_features: when given, features must be below it.

    Raises:
        SaeFormatError: the file is not such a table; the message says what was found instead.
    """
    path = Path(path)
    if not path.exists():
        raise SaeFormatError(f"{path} does not exist.")
    records = _read_records(path)
    if not records:
        raise SaeFormatError(f"{path} holds no rows.")
    columns = sorted({str(name) for record in records for name in record})
    feature, text = (_column(columns, names) for names in (FEATURE_NAMES, TEXT_NAMES))
    score = _column([name for name in columns if name not in (feature, text)], SCORE_NAMES)
    if feature is None or text is None:
        missing = "feature" if feature is None else "text"
        raise SaeFormatError(f"No {missing} column was recognized in {path}; its columns are {', '.join(columns)}.")
    rows = [
        Interpretation(
            _feature(record.get(feature), path), str(record[text]), _score(record.get(score) if score else None)
        )
        for record in records
        if record.get(text) not in (None, "")
    ]
    if n_features is not None:
        outside = [row.feature for row in rows if not 0 <= row.feature < n_features]
        if outside:
            raise SaeFormatError(f"{path} describes feature {outside[0]}, but the SAE has {n_features}.")
    return sorted(rows, key=lambda row: row.feature)


def write_interpretations(rows: Sequence[Interpretation], path: str | Path) -> Path:
    """Write CSV with the columns feature, text, score (empty if there is none)."""
    path = Path(path)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["feature", "text", "score"])
        writer.writerows([row.feature, row.text, "" if row.score is None else row.score] for row in rows)
    return path


def _read_records(path: Path) -> list[dict[str, Any]]:
    try:
        if path.suffix in (".csv", ".tsv"):
            with path.open(newline="", encoding="utf-8") as file:
                return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
        if path.suffix == ".parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_table(path).to_pylist()
        if path.suffix == ".jsonl":
            found: Any = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        elif path.suffix == ".json":
            found = json.loads(path.read_text(encoding="utf-8"))
        else:
            raise SaeFormatError(f"{path} is not a table ({', '.join(TABLE_SUFFIXES)}).")
    except (json.JSONDecodeError, UnicodeDecodeError, csv.Error) as error:
        raise SaeFormatError(f"{path} could not be read as {path.suffix[1:]}.") from error
    if isinstance(found, dict):
        found = [
            {"feature": key, **(value if isinstance(value, dict) else {"text": value})} for key, value in found.items()
        ]
    if not isinstance(found, list) or not all(isinstance(record, dict) for record in found):
        raise SaeFormatError(f"{path} is neither a list of objects nor an object by feature.")
    return found


def _column(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The column with the first of these names; if there is none, the only column that contains one of them."""
    plain = {re.sub(r"[^a-z0-9]+", "_", column.lower()).strip("_"): column for column in columns}
    for name in names:
        if name in plain:
            return plain[name]
    longer = [name for name in names if len(name) > 3]
    close = [column for key, column in plain.items() if any(name in key for name in longer)]
    return close[0] if len(close) == 1 else None


def _feature(value: Any, path: Path) -> int:
    match = re.search(r"(\d+)(\.0)?$", str(value))
    if match is None:
        raise SaeFormatError(f"{value!r} in {path} is not the number of a feature.")
    return int(match.group(1))


def _score(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return None if math.isnan(number) else number
