"""Folders of results: tidy tables and what made them, in one format that the gallery and reports read.

    out/
      summary.json      what made the result and its main figures; written last, so a folder with it is complete
      NAME.parquet      one file per table, and the same as NAME.csv
      units/            finished parts of a run that is not complete, or of one that is

``summary.json`` has no time and no path of this machine in it: the same work gives the same bytes.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from sae_lens_maira.errors import ResultError, quoted
from sae_lens_maira.files import from_json, hash_file, read_mark, replacing, to_json, write_text
from sae_lens_maira.files import mark as mark_folder

SCHEMA_VERSION = 1
SUMMARY = "summary.json"
_UNITS, _KEY = "units", "key.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MADE_WITH = ("sae-lens-maira", "sae-lens", "torch", "transformers")


@dataclass(frozen=True)
class Column:
    """How the gallery shows a column of the table ``features``.

    Args:
        title: a few words.
        explanation: one sentence.
        low: column with the lower end of the value's interval.
        high: column with the upper end.
        control: column with the value of the control that stands beside it.
        digits: decimal places; None for a column of texts or whole numbers.
    """

    title: str
    explanation: str
    low: str | None = None
    high: str | None = None
    control: str | None = None
    digits: int | None = None


@dataclass(frozen=True)
class Result:
    """A complete folder of results.

    Args:
        folder: where it is.
        kind: what was done, such as ``concepts``.
        summary: all of ``summary.json``.
        columns: how columns of the table ``features`` are shown, by name.
    """

    folder: Path
    kind: str
    summary: dict[str, Any]
    columns: dict[str, Column]

    @property
    def table_names(self) -> list[str]:
        """Names of its tables."""
        return list(self.summary["tables"])

    def table(self, name: str) -> pa.Table:
        """One of its tables.

        Raises:
            ResultError: there is no such table, or its file is not the one that was written.
        """
        if name not in self.summary["tables"]:
            raise ResultError(f"'{self.folder}' has no table {quoted(name)}; it has {', '.join(self.table_names)}.")
        path = self.folder / f"{name}.parquet"
        if not path.is_file() or hash_file(path) != self.summary["files"][path.name]:
            raise ResultError(f"'{path}' is missing or was changed after it was written; make the result again.")
        return pyarrow.parquet.read_table(path)


def write_result(
    folder: Path,
    kind: str,
    tables: Mapping[str, pa.Table],
    summary: Mapping[str, Any],
    *,
    columns: Mapping[str, Column] | None = None,
    files: Iterable[str] = (),
) -> Result:
    """Write tables and summary; the summary comes last.

    Args:
        folder: of the result; it is made if it does not exist.
        kind: what was done, such as ``concepts``.
        tables: by name; ``features`` has one row per feature, with the column ``feature``.
        summary: plain values: settings, seeds, splits, checksums of inputs, and the main figures.
        columns: how columns of ``features`` are shown.
        files: further files that were already written, relative to the folder; they are listed with checksums.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SUMMARY).unlink(missing_ok=True)
    written = list(files)
    for name, table in tables.items():
        _check_name(name)
        with replacing(folder / f"{name}.parquet") as file:
            pyarrow.parquet.write_table(table, file)
        with replacing(folder / f"{name}.csv") as file:
            pyarrow.csv.write_csv(_flat(table), file)
        written += [f"{name}.parquet", f"{name}.csv"]
    facts = {
        **summary,
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "made_with": {package: version(package) for package in _MADE_WITH},
        "tables": {name: table.num_rows for name, table in tables.items()},
        "columns": [{"name": name, **asdict(column)} for name, column in (columns or {}).items()],
        "files": {name: hash_file(folder / name) for name in written},
    }
    write_text(folder / SUMMARY, to_json(facts))
    return read_result(folder)


def read_result(folder: Path) -> Result:
    """Open a complete folder of results.

    Raises:
        ResultError: the folder has no readable summary, or one of another version.
    """
    path = folder / SUMMARY
    if not path.is_file():
        raise ResultError(f"'{folder}' has no {SUMMARY}: it is no result, or its run was stopped; run it again.")
    try:
        summary = from_json(path.read_bytes())
        if summary["schema_version"] != SCHEMA_VERSION:
            raise ResultError(f"'{path}' has format {quoted(summary['schema_version'])}, not {SCHEMA_VERSION}.")
        columns = {
            str(column["name"]): Column(**{key: value for key, value in column.items() if key != "name"})
            for column in summary["columns"]
        }
        for name in summary["tables"]:
            _check_name(name)
        return Result(folder, str(summary["kind"]), summary, columns)
    except ResultError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ResultError(f"'{path}' is not a summary of results ({quoted(error)}); make the result again.") from None


class Units:
    """Finished parts of a long run, one file each: after an interruption only the missing ones are computed.

    Args:
        folder: of the result; the parts are in its folder ``units``.
        key: plain values that determine the parts: settings, checksums of inputs, versions of formats.
        overwrite: drop the parts of another key instead of refusing them.

    Raises:
        ResultError: the folder holds parts that were made with another key.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self._folder = folder / _UNITS
        known, wanted = self._folder / _KEY, to_json(dict(key))
        if known.is_file() and known.read_text(encoding="utf-8") != wanted:
            if not overwrite:
                changed = _changed(known, wanted)
                raise ResultError(
                    f"'{folder}' was made with other settings ({changed}); give another --out, or --overwrite."
                )
            if read_mark(self._folder, _UNITS) is None:
                raise ResultError(f"'{self._folder}' was not written by this package; give another --out.")
            shutil.rmtree(self._folder)
        if not known.is_file():
            if self._folder.is_dir() and any(self._folder.iterdir()) and read_mark(self._folder, _UNITS) is None:
                raise ResultError(f"'{self._folder}' was not written by this package; give another --out.")
            self._folder.mkdir(parents=True, exist_ok=True)
            mark_folder(self._folder, _UNITS)
            write_text(known, wanted)

    def is_done(self, name: str) -> bool:
        """Whether a part is finished."""
        return self._path(name).is_file()

    def write(self, name: str, value: Any) -> None:
        """Keep a part's plain values."""
        write_text(self._path(name), to_json(value))

    def read(self, name: str) -> Any:
        """A part's plain values.

        Raises:
            ResultError: its file is not readable.
        """
        path = self._path(name)
        try:
            return from_json(path.read_bytes())
        except (OSError, ValueError):
            raise ResultError(f"'{path}' is not readable; remove it, and its part will be computed again.") from None

    def _path(self, name: str) -> Path:
        _check_name(name)
        return self._folder / f"{name}.json"


def _changed(known: Path, wanted: str) -> str:
    """Names of the first settings that differ."""
    try:
        old, new = from_json(known.read_bytes()), from_json(wanted)
        names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    except (ValueError, AttributeError, TypeError):
        return f"{known.name} is not readable"
    return ", ".join(names[:3])


def _flat(table: pa.Table) -> pa.Table:
    """A table for CSV, in which lists are JSON texts."""
    for index, field in enumerate(table.schema):
        if pa.types.is_nested(field.type):
            texts = [to_json(value).strip().replace("\n", "") for value in table.column(index).to_pylist()]
            table = table.set_column(index, field.name, pa.array(texts, pa.string()))
    return table


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or f"{name}.json" == _KEY:
        raise ResultError(f"{quoted(name)} is no name of a table or part; use letters, digits, dots and dashes.")
