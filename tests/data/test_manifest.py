"""Studies from a table of one's own."""

import json
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sae_lens_maira.data.manifest import read_manifest
from sae_lens_maira.data.study import Label
from sae_lens_maira.errors import ManifestError


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.png"):
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / name)
    return tmp_path


def write_csv(folder, *lines):
    path = folder / "studies.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_csv_and_json_lines_give_the_same_studies(folder):
    csv_path = write_csv(
        folder,
        "study_id,frontal,prior_frontal,prior_report,findings,view,shareable",
        's1,a.png,b.png,Clear.,"Small effusion, new.",AP,true',
        "s2,b.png,,,,,",
    )
    json_path = folder / "studies.jsonl"
    values = [
        {
            "study_id": "s1",
            "frontal": "a.png",
            "prior_frontal": "b.png",
            "prior_report": "Clear.",
            "findings": "Small effusion, new.",
            "view": "AP",
            "shareable": True,
        },
        {"study_id": "s2", "frontal": "b.png", "lateral": None},
    ]
    json_path.write_text("\n".join(json.dumps(value) for value in values))
    studies = read_manifest(csv_path)
    assert studies == read_manifest(json_path)
    first, second = studies
    assert (first.findings, first.prior_report, first.view, first.shareable) == (
        "Small effusion, new.",
        "Clear.",
        "AP",
        True,
    )
    assert first.prior_frontal is not None
    assert first.prior_frontal.open().size == (8, 8)
    assert (second.patient_id, second.findings, second.lateral, second.shareable) == ("s2", None, None, False)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["study_id,frontal", ",a.png"], "line 2: study_id is missing"),
        (["study_id,frontal", "s1,"], "line 2: frontal is missing"),
        (["study_id,frontal", "s1,c.png"], "line 2: the frontal image '.*c.png' does not exist"),
        (["study_id,frontal", "s1,a.png", "s1,b.png"], "line 3: the study 's1' was given before"),
        (["study_id,frontl", "s1,a.png"], "line 2: unknown column frontl; there are"),
        (["study_id,frontal,view", "s1,a.png,LL"], "line 2: view is 'LL', not PA or AP"),
        (["study_id,frontal,prior_report", "s1,a.png,Clear."], "line 2: .*prior report needs a prior frontal image"),
        (["study_id,frontal"], "holds no studies"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(folder, lines, message):
    with pytest.raises(ManifestError, match=message):
        read_manifest(write_csv(folder, *lines))


def test_parquet_json_lines_and_csv_give_the_same_labels_and_times(folder):
    labels = {"effusion": "absent", "edema": ["present", "new"], "nodule": None}
    csv_path = write_csv(
        folder,
        "study_id,frontal,acquired_at,labels,shareable",
        f's1,a.png,2024-05-31T10:15:00,"{json.dumps(labels).replace(chr(34), chr(34) * 2)}",true',
        "s2,b.png,,,",
    )
    row = {"study_id": "s1", "frontal": "a.png", "acquired_at": "2024-05-31T10:15:00", "shareable": True}
    other = {"study_id": "s2", "frontal": "b.png"}
    json_path = folder / "studies.jsonl"
    json_path.write_text(json.dumps({**row, "labels": labels}) + "\n\n" + json.dumps(other))
    time = datetime(2024, 5, 31, 10, 15)
    structs = [{**row, "acquired_at": time, "labels": {"effusion": "absent"}}, other]
    texts = [{**row, "labels": json.dumps(labels)}, other]
    for name, rows in {"structs": structs, "texts": texts}.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    expected = {"effusion": Label("absent"), "edema": Label("present", "new")}
    studies = read_manifest(csv_path)
    assert studies == read_manifest(json_path) == read_manifest(folder / "texts.parquet")
    assert (studies[0].labels, studies[0].acquired_at, studies[0].shareable) == (expected, time, True)
    assert (studies[1].labels, studies[1].acquired_at, studies[1].shareable) == ({}, None, False)
    (first, _) = read_manifest(folder / "structs.parquet")
    assert (first.labels, first.acquired_at) == ({"effusion": Label("absent")}, time)


@pytest.mark.parametrize(
    "kind", [pa.map_(pa.string(), pa.string()), pa.struct([("a", pa.string()), ("b", pa.string())])]
)
def test_parquet_maps_and_structs_are_labels(folder, kind):
    value = [("a", "present")] if pa.types.is_map(kind) else {"a": "present", "b": None}
    columns = {"study_id": ["s1"], "frontal": ["a.png"], "labels": pa.array([value], kind)}
    pq.write_table(pa.table(columns), folder / "s.parquet")
    (study,) = read_manifest(folder / "s.parquet")
    assert study.labels == {"a": Label("present")}


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("labels", "{", "line 2: labels are not valid JSON"),
        ("labels", "[1]", "line 2: labels are no object"),
        ("labels", '{"a": "maybe"}', "line 2: the label of 'a' is \"maybe\"; it can be present, uncertain, absent"),
        ("labels", '{"a": ["absent", "gone"]}', "the label of 'a' is .*with new, larger"),
        ("labels", '{"a": ["absent", "new", 1]}', "the label of 'a' is"),
        ("labels", '{"a": {}}', "the label of 'a' is"),
        ("acquired_at", "yesterday", "acquired_at is 'yesterday', not as 2024-05-31T10:15:00"),
    ],
)
def test_wrong_labels_and_times_are_named(folder, column, value, message):
    quoted = value.replace('"', '""')
    with pytest.raises(ManifestError, match=message):
        read_manifest(write_csv(folder, f"study_id,frontal,{column}", f's1,a.png,"{quoted}"'))


def test_a_parquet_row_that_is_wrong_is_named(folder):
    rows = [{"study_id": "s1", "frontal": "a.png"}, {"study_id": "s1", "frontal": "b.png"}]
    pq.write_table(pa.Table.from_pylist(rows), folder / "s.parquet")
    with pytest.raises(ManifestError, match=r"s\.parquet' row 2: the study 's1' was given before"):
        read_manifest(folder / "s.parquet")
    (folder / "bad.parquet").write_bytes(b"PAR1 no parquet")
    with pytest.raises(ManifestError, match=r"bad\.parquet' is no Parquet file"):
        read_manifest(folder / "bad.parquet")


def test_files_that_are_no_manifests(folder):
    with pytest.raises(ManifestError, match="There is no manifest"):
        read_manifest(folder / "none.csv")
    (folder / "a.txt").write_text("x")
    with pytest.raises(ManifestError, match=r"must be a \.csv, \.jsonl or \.parquet file"):
        read_manifest(folder / "a.txt")
    (folder / "bad.jsonl").write_text("{")
    with pytest.raises(ManifestError, match="line 1 is not valid JSON"):
        read_manifest(folder / "bad.jsonl")
