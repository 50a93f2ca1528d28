"""Descriptions of features as one tidy table (feature, text, score), read from files with various column names.

Reads CSV, TSV, JSON (a list of objects, or an object by feature), JSON lines and Parquet. Columns are recognized by
name; if there is no column of features or of texts, the error lists the columns that were found.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sae_lens_maira.data.delimited import read_delimited
from sae_lens_maira.data.study import find_unwritable
from sae_lens_maira.errors import SaeFormatError, printable, quoted
from sae_lens_maira.files import from_json

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
        SaeFormatError: the table is damaged, or a row has no whole number of a feature, no finite score, or a feature
            that was described before; the message names file and row.
    """
    path = Path(path)
    if not path.is_file():
        raise SaeFormatError(f"There is no table of interpretations '{path}'.")
    records = _read_records(path)
    if not records:
        raise SaeFormatError(f"{path} holds no rows.")
    columns = sorted({str(name) for record in records for name in record.values})
    feature, text = (_column(columns, names) for names in (FEATURE_NAMES, TEXT_NAMES))
    score = _column([name for name in columns if name not in (feature, text)], SCORE_NAMES)
    if feature is None or text is None:
        missing = "feature" if feature is None else "text"
        listed = quoted(", ".join(columns), 400)[1:-1]
        raise SaeFormatError(f"No {missing} column was recognized in {path}; its columns are {listed}.")
    rows: dict[int, Interpretation] = {}
    for record in records:
        words = record.values.get(text)
        if words in (None, ""):
            continue
        number = _feature(record.values.get(feature), record.where)
        if n_features is not None and number >= n_features:
            raise SaeFormatError(f"{record.where} describes feature {number}, but the SAE has {n_features}.")
        if number in rows:
            raise SaeFormatError(f"{record.where} describes feature {number}, which was described before; keep one.")
        if not isinstance(words, str) or find_unwritable(words) is not None:
            raise SaeFormatError(f"{record.where}: the text of feature {number} is {quoted(words)}, which is no text.")
        given = record.values.get(score) if score else None
        rows[number] = Interpretation(number, words, _score(given, f"{record.where}: {quoted(score)}"))
    return sorted(rows.values(), key=lambda row: row.feature)


def write_interpretations(rows: Sequence[Interpretation], path: str | Path) -> Path:
    """Write CSV with the columns feature, text, score (empty if there is none)."""
    path = Path(path)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["feature", "text", "score"])
        writer.writerows([row.feature, row.text, "" if row.score is None else row.score] for row in rows)
    return path


@dataclass(frozen=True)
class _Record:
    """One row, and what to call it in a message."""

    where: str
    values: dict[str, Any]


def _read_records(path: Path) -> list[_Record]:
    kind = path.suffix
    if kind not in TABLE_SUFFIXES:
        raise SaeFormatError(f"{path} is not a table ({', '.join(TABLE_SUFFIXES)}).")
    try:
        if kind in (".csv", ".tsv"):
            with path.open("rb") as file:
                delimiter = "\t" if kind == ".tsv" else ","
                rows = read_delimited(file, path, error=SaeFormatError, delimiter=delimiter)
                return [_Record(f"'{path}' line {line}", dict(values)) for line, values in rows]
        if kind == ".parquet":
            return _objects(_parquet(path), path)
        if kind == ".json":
            return _objects(from_json(path.read_bytes()), path)
    except (ValueError, OSError) as error:
        if isinstance(error, SaeFormatError):
            raise
        raise SaeFormatError(f"'{path}' could not be read as {kind[1:]} ({printable(error)}).") from error
    records: list[_Record] = []
    for line, content in enumerate(path.read_bytes().splitlines(), start=1):
        where = f"'{path}' line {line}"
        try:
            values = from_json(content) if content.strip() else {}
        except ValueError as error:
            raise SaeFormatError(f"{where} is not valid JSON ({printable(error)}).") from error
        if not isinstance(values, dict):
            raise SaeFormatError(f"{where} holds no JSON object.")
        if values:
            records.append(_Record(where, values))
    return records


def _parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OverflowError, LookupError, TypeError) as error:
        raise ValueError(str(error)) from error


def _objects(found: Any, path: Path) -> list[_Record]:
    """Rows from a list of objects, or from an object by feature."""
    if isinstance(found, dict):
        found = [
            {"feature": key, **(value if isinstance(value, dict) else {"text": value})} for key, value in found.items()
        ]
    if not isinstance(found, list) or not all(isinstance(record, dict) for record in found):
        raise SaeFormatError(f"{path} is neither a list of objects nor an object by feature.")
    return [_Record(f"'{path}' row {row}", values) for row, values in enumerate(found, start=1)]


def _column(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The column with the first of these names; if there is none, the only column that contains one of them."""
    plain = {re.sub(r"[^a-z0-9]+", "_", column.lower()).strip("_"): column for column in columns}
    for name in names:
        if name in plain:
            return plain[name]
    longer = [name for name in names if len(name) > 3]
    close = [column for key, column in plain.items() if any(name in key for name in longer)]
    return close[0] if len(close) == 1 else None


_FEATURE = re.compile(r"(?:[A-Za-z](?:.*[^0-9.])?)?([0-9]{1,12})(?:\.0+)?")
"""``7``, ``7.0``, ``latent_7``; neither ``-7`` nor ``1.5``, whose last digits are no feature."""


def _feature(value: Any, where: str) -> int:
    match = None if isinstance(value, bool) else _FEATURE.fullmatch(str(value).strip())
    if match is None:
        raise SaeFormatError(f"{quoted(value)} in {where} is not the number of a feature; features are 0, 1, 2, ...")
    return int(match[1])


def _score(value: Any, where: str) -> float | None:
    """A finite number; None where there is none, which tables also write as NaN."""
    if value is None or value == "":
        return None
    try:
        number = math.inf if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.inf
    if math.isinf(number):
        raise SaeFormatError(f"{where} is {quoted(value)}; a score is a finite number, or left empty.")
    return None if math.isnan(number) else number
