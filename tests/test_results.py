"""Folders of results: what is written is read, and what is not ours is refused."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow as pa
import pytest

from sae_lens_maira.errors import ResultError
from sae_lens_maira.results import Column, Units, read_result, write_result

_TABLE = pa.table({"feature": [3, 5], "score": [0.5, None], "near": [[1, 2], []]})
_COLUMNS = {"score": Column("Score", "How good it is.", control="chance", digits=2)}


def _write(folder: Path) -> None:
    write_result(folder, "concepts", {"features": _TABLE}, {"settings": {"seed": 1}}, columns=_COLUMNS)


def test_round_trip_and_same_bytes(tmp_path: Path) -> None:
    _write(tmp_path / "a")
    _write(tmp_path / "b")
    result = read_result(tmp_path / "a")
    assert result.table("features").equals(_TABLE)
    assert (result.kind, result.columns, result.summary["settings"]) == ("concepts", _COLUMNS, {"seed": 1})
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["features.csv", "features.parquet", "summary.json"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with (tmp_path / "a" / "features.csv").open() as file:
        assert next(iter(csv.DictReader(file))) == {"feature": "3", "score": "0.5", "near": "[ 1, 2]"}


def test_a_changed_table_is_noticed(tmp_path: Path) -> None:
    _write(tmp_path)
    result = read_result(tmp_path)
    (tmp_path / "features.parquet").write_bytes(b"other")
    with pytest.raises(ResultError, match="changed after it was written"):
        result.table("features")
    with pytest.raises(ResultError, match="has no table 'concepts'; it has features"):
        result.table("concepts")


def test_a_run_that_was_stopped_while_writing_leaves_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path)
    monkeypatch.setattr("pyarrow.csv.write_csv", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        _write(tmp_path)
    with pytest.raises(ResultError, match="its run was stopped"):
        read_result(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 1}', '{"schema_version": 9}', "[" * 100_000])
def test_a_broken_summary_is_refused_in_words(tmp_path: Path, text: str) -> None:
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(ResultError, match=r"summary\.json"):
        read_result(tmp_path)


def test_units_survive_and_belong_to_their_settings(tmp_path: Path) -> None:
    units = Units(tmp_path, {"dose": 2, "seed": 0})
    assert not units.is_done("study-1")
    units.write("study-1", {"report": "No \u2028 edema."})
    again = Units(tmp_path, {"seed": 0, "dose": 2})
    assert again.is_done("study-1")
    assert again.read("study-1") == {"report": "No \u2028 edema."}
    with pytest.raises(ResultError, match=r"other settings \(dose\); give another --out, or --overwrite"):
        Units(tmp_path, {"dose": 3, "seed": 0})
    assert not Units(tmp_path, {"dose": 3}, overwrite=True).is_done("study-1")


def test_overwriting_removes_only_our_own_folder(tmp_path: Path) -> None:
    (tmp_path / "units").mkdir()
    (tmp_path / "units" / "thesis.txt").write_text("do not remove")
    with pytest.raises(ResultError, match="not written by this package"):
        Units(tmp_path, {"dose": 3}, overwrite=True)
    assert (tmp_path / "units" / "thesis.txt").exists()


@pytest.mark.parametrize("name", ["../key", "key", "a/b", "", ".hidden", "a\n"])
def test_names_stay_inside_of_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ResultError, match="no name of a table or part"):
        Units(tmp_path, {}).write(name, 1)


def test_a_damaged_unit_is_named(tmp_path: Path) -> None:
    units = Units(tmp_path, {})
    units.write("a", 1)
    (tmp_path / "units" / "a.json").write_text("{")
    with pytest.raises(ResultError, match=r"a\.json' is not readable; remove it"):
        units.read("a")
