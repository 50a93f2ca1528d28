"""Tables of labels that other programs wrote, from any judge: CheXbert, RadEval, a language model or a person.

One label per row, in CSV or Parquet:

``study_id``
    of the source of studies
``concept``
    any name
``value``
    ``present``, ``absent`` or ``uncertain``; or as CheXpert writes them, 1, 0 and -1. An empty value is no label.
``source``
    who says so; one table may hold several sources
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet

from sae_lens_maira.data.delimited import read_delimited
from sae_lens_maira.data.study import Label, Presence
from sae_lens_maira.errors import UserError, quoted

COLUMNS = ("study_id", "concept", "value", "source")
_NUMBERS = {1.0: Label("present"), 0.0: Label("absent"), -1.0: Label("uncertain")}
_ENDINGS = (".csv", ".tsv", ".parquet")


class JudgeError(UserError):
    """A table of labels cannot be used; the message names the file and the row."""


def read_judges(path: Path, study_ids: Iterable[str] | None = None) -> dict[str, dict[str, dict[str, Label]]]:
    """Read a table of labels.

    Args:
        path: CSV, TSV or Parquet.
        study_ids: of the source of studies; labels of other studies are left out, and a table with none of these
            studies is refused.

    Returns:
        for each source, the labels of each study, by concept.

    Raises:
        JudgeError: the table is damaged, lacks a column, has an unknown value, labels one concept of a study twice in
            different ways, or knows none of the studies.
    """
    found: dict[str, dict[str, dict[str, Label]]] = {}
    known = None if study_ids is None else set(study_ids)
    seen: set[str] = set()
    for where, row in _rows(path):
        for name in ("study_id", "concept", "source"):
            if not row[name].strip():
                raise JudgeError(f"'{path}' {where}: {name} is empty; fill it in or remove the row.")
        label = _label(row["value"], path, where)
        seen.add(row["study_id"])
        if label is None or (known is not None and row["study_id"] not in known):
            continue
        labels = found.setdefault(row["source"], {}).setdefault(row["study_id"], {})
        if labels.setdefault(row["concept"], label) != label:
            raise JudgeError(
                f"'{path}' {where}: {quoted(row['source'])} labels {quoted(row['concept'])} of study "
                f"{quoted(row['study_id'])} twice in different ways; keep one of the rows."
            )
    if known is not None and not seen & known:
        example = quoted(next(iter(sorted(seen)), ""))
        raise JudgeError(f"'{path}' knows none of the studies; its ids look like {example}.")
    return found


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    if path.suffix not in _ENDINGS:
        raise JudgeError(f"'{path}' is no table of labels: its name must end in {', '.join(_ENDINGS)}.")
    if not path.is_file():
        raise JudgeError(f"There is no table of labels '{path}'.")
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    delimiter = "\t" if path.suffix == ".tsv" else ","
    with path.open("rb") as file:
        for line, row in read_delimited(file, path, COLUMNS, error=JudgeError, delimiter=delimiter):
            yield f"line {line}", row


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    try:
        table = pyarrow.parquet.read_table(path)
    except (pa.ArrowException, OSError) as problem:
        raise JudgeError(f"'{path}' is not a readable Parquet file ({quoted(problem)}); write it again.") from None
    missing = sorted(set(COLUMNS) - set(table.column_names))
    if missing:
        raise JudgeError(f"'{path}' lacks the column {', '.join(missing)}.")
    for number, row in enumerate(table.select(list(COLUMNS)).to_pylist(), start=1):
        yield f"row {number}", {name: "" if value is None else str(value) for name, value in row.items()}


def _label(value: Any, path: Path, where: str) -> Label | None:
    text = str(value).strip().lower()
    if text in ("", "nan"):
        return None
    if text in get_args(Presence):
        return Label(text)  # pyright: ignore[reportArgumentType]
    try:
        return _NUMBERS[float(text)]
    except (KeyError, ValueError):
        raise JudgeError(
            f"'{path}' {where}: the value {quoted(value)} is unknown; write present, absent or uncertain (1, 0, -1)."
        ) from None
