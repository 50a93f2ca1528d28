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
from sae_lens_maira.errors import ManifestError, MissingPackageError
from tests.damage import check_sentence


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


GOOD = "study_id,frontal,findings\ns1,a.png,Clear.\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('s2,a.png,"open\ns3,b.png,x\n', "line 3: a quotation mark is opened here and never closed"),
        ('s2,a.png,"open\ns3,b.png,"x"\n', "line 3: a text goes on after its closing quotation mark"),
        ("s2,a.png\n", "line 3: the row has 2 values, but the header names 3 columns; put texts with commas between"),
        ("s2,a.png,Clear, dry.\n", "line 3: the row has 4 values, but the header names 3 columns"),
        (f"s2,a.png,{'x' * 131_073}\n", "line 3: a value is longer than 131072 characters; look for a quotation mark"),
        ("s2,a.png,a\0b\n", "line 3 holds a NUL character; save the table as text in UTF-8"),
    ],
)
def test_a_damaged_row_of_a_csv_is_named_with_its_line(folder, content, message):
    (folder / "s.csv").write_text(GOOD + content)
    with pytest.raises(ManifestError, match=message) as caught:
        read_manifest(folder / "s.csv")
    check_sentence(str(caught.value), "s.csv")


def test_lines_are_those_of_the_file_after_texts_of_several_lines(folder):
    (folder / "s.csv").write_text(GOOD + '\ns2,a.png,"Two\n\nlines"\ns3,none.png,x\n')
    with pytest.raises(ManifestError, match="line 7: the frontal image"):
        read_manifest(folder / "s.csv")
    (folder / "s.csv").write_text(GOOD + '\r\ns2,a.png,"Two\n""lines"""\n')
    assert [study.findings for study in read_manifest(folder / "s.csv")] == ["Clear.", 'Two\n"lines"']


def test_a_column_that_is_named_twice_is_refused(folder):
    path = write_csv(folder, "study_id,frontal,findings,findings", "s1,a.png,one,two")
    with pytest.raises(ManifestError, match="has the column 'findings' twice"):
        read_manifest(path)


@pytest.mark.parametrize(("name", "encoding"), [("s.csv", "latin-1"), ("s.csv", "utf-16"), ("s.jsonl", "latin-1")])
def test_another_encoding_is_named_with_its_line(folder, name, encoding):
    rows = [{"study_id": f"s{number}", "frontal": "a.png", "findings": "Épanchement"} for number in range(2)]
    lines = ["study_id,frontal,findings", *(",".join(row.values()) for row in rows)]
    if name == "s.jsonl":
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / name).write_bytes("\n".join(lines).encode(encoding))
    line = {"utf-16": 1, "latin-1": 2 if name == "s.csv" else 1}[encoding]
    with pytest.raises(
        ManifestError, match=rf"{name}' line {line} is not UTF-8 \(byte 0x..\); save the table as UTF-8"
    ):
        read_manifest(folder / name)


@pytest.mark.parametrize("column", ["study_id", "patient_id", "findings", "indication", "frontal"])
def test_half_of_a_surrogate_pair_is_refused_with_line_and_study(folder, column):
    row = {"study_id": "s1", "frontal": "a.png"}
    wrong = {**row, "study_id": "s2", column: "x\ud800"}
    (folder / "s.jsonl").write_text("\n".join(json.dumps(values) for values in (row, wrong)))
    study = r"x\\ud800" if column == "study_id" else "s2"
    message = rf"s\.jsonl' line 2: {column} of the study '{study}' holds \\ud800, which is no character of a text"
    with pytest.raises(ManifestError, match=message) as caught:
        read_manifest(folder / "s.jsonl")
    check_sentence(str(caught.value), "s.jsonl")


@pytest.mark.parametrize("name", ["s.csv", "s.jsonl"])
def test_half_of_a_surrogate_pair_in_the_name_of_a_label_is_refused(folder, name):
    labels = '{"a\\ud800": "absent"}'
    quoted = labels.replace('"', '""')
    csv = f'study_id,frontal,labels\ns1,a.png,"{quoted}"\n'
    json_line = f'{{"study_id": "s1", "frontal": "a.png", "labels": {labels}}}'
    (folder / name).write_text(csv if name == "s.csv" else json_line)
    with pytest.raises(ManifestError, match=rf"{name}' line \d: label a\\ud800 of the study 's1' holds \\ud800"):
        read_manifest(folder / name)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[" * 9000, "it is nested too deeply"),
        ('{"study_id": "s", "study_id": "t", "frontal": "a.png"}', "it names 'study_id' twice"),
        ('{"study_id": ["s"], "frontal": "a.png"}', "study_id is .*, not a text"),
        ('{"study_id": "s", "frontal": {"path": "a.png"}}', "frontal is .*, not a text"),
        ('{"study_id": "s", "frontal": "a\\u0000.png"}', r"frontal of the study 's' holds \\x00"),
        (json.dumps({"study_id": "s", "frontal": "a" * 5000}), "line 1: the frontal image '.*' does not exist"),
        ('{"study_id": "s", "frontal": "a.png", "labels": {"a": "\\u001b[2J\\n"}}', "the label of 'a' is"),
        ('{"study_id": "s", "frontal": "a.png", "labels": {"a": [["x"], "new"]}}', "the label of 'a' is"),
        ('{"study_id": "s", "frontal": "a.png", "\\u001b[2J": 1}', r"unknown column \\x1b\[2J"),
    ],
)
def test_json_lines_that_are_wrong_are_one_sentence(folder, line, message):
    (folder / "s.jsonl").write_text(line)
    with pytest.raises(ManifestError, match=message) as caught:
        read_manifest(folder / "s.jsonl")
    check_sentence(str(caught.value), "s.jsonl")


def test_nan_is_nothing_as_tables_of_pandas_write_it(folder):
    columns = {"study_id": ["s1", "s2"], "frontal": ["a.png", "b.png"], "lateral": [float("nan")] * 2}
    pq.write_table(pa.table(columns), folder / "s.parquet")
    assert [study.lateral for study in read_manifest(folder / "s.parquet")] == [None, None]


def test_all_problems_of_a_table_are_told_at_once(tmp_path):
    """Ten in words, the others as a number."""
    (tmp_path / "here.png").touch()
    rows = [f"s{row},{'here' if row == 3 else f'gone{row}'}.png" for row in range(14)]
    (tmp_path / "studies.csv").write_text("\n".join(["study_id,frontal", *rows, "s3,here.png"]))
    with pytest.raises(ManifestError) as error:
        read_manifest(tmp_path / "studies.csv")
    text = str(error.value)
    assert [f"gone{row}.png" in text for row in range(14)] == [row != 3 and row < 11 for row in range(14)]
    assert text.endswith("; and 4 more.")
    assert "\n" not in text


def test_dicom_images_need_their_package_before_anything_is_loaded(tmp_path, monkeypatch):
    (tmp_path / "a.dcm").touch()
    (tmp_path / "studies.csv").write_text("study_id,frontal\ns,a.dcm\n")
    assert len(read_manifest(tmp_path / "studies.csv")) == 1
    monkeypatch.setattr("sae_lens_maira.data.manifest.find_spec", lambda _: None)
    with pytest.raises(MissingPackageError, match=r"^Reading the frontal image '.*a\.dcm' needs pydicom: pip install"):
        read_manifest(tmp_path / "studies.csv")
