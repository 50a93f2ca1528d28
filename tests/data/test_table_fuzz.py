"""Damaged tables and reports end as studies or as one sentence that names the file, never otherwise."""

import gzip
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sae_lens_maira.data.manifest import read_manifest
from sae_lens_maira.data.mimic_reports import ReportZip
from sae_lens_maira.data.mimic_tables import read_labels, read_metadata, read_split
from sae_lens_maira.data.openi_reports import parse_openi_report, read_reports
from tests.damage import outcomes
from tests.data.miniature_mimic import dicom
from tests.data.miniature_openi import write_archive, write_report

ROWS = [
    {
        "study_id": f"s{number}",
        "frontal": "a.png",
        "findings": 'Small "apical" effusion,\nnew.',
        "acquired_at": "2024-05-31T10:15:00",
        "labels": json.dumps({"effusion": ["present", "new"], "edema": "absent"}),
    }
    for number in range(6)
]
METADATA = "dicom_id,subject_id,study_id,ViewPosition,StudyDate,StudyTime\n" + "".join(
    f"{dicom(number)},10000032,5000000{number},PA,21800506,80556.875\n" for number in range(6)
)
LABELS = "subject_id,study_id,Edema\n" + "".join(f"10000032,5000000{number},-1.0\n" for number in range(6))
SPLIT = "dicom_id,study_id,subject_id,split\n" + f"{dicom(1)},50000001,10000032,train\n" * 3


def write_csv(path: Path) -> None:
    names = list(ROWS[0])
    lines = [",".join('"' + row[name].replace('"', '""') + '"' for name in names) for row in ROWS]
    path.write_text("\n".join([",".join(names), *lines]))


def write_json_lines(path: Path) -> None:
    path.write_text("\n".join(json.dumps({**row, "labels": json.loads(row["labels"])}) for row in ROWS))


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("files/p10/p10000032/s50000001.txt", "FINDINGS: Clear lungs.\n" * 9)


def read_zip(path: Path) -> None:
    ReportZip(path).read("10000032", "50000001")


Reader = tuple[str, Callable[[Path], Any], Callable[[Path], Any]]
READERS: list[Reader] = [
    ("manifest.csv", write_csv, read_manifest),
    ("manifest.jsonl", write_json_lines, read_manifest),
    ("manifest.parquet", lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path), read_manifest),
    ("metadata.csv", lambda path: path.write_text(METADATA), read_metadata),
    ("metadata.csv.gz", lambda path: path.write_bytes(gzip.compress(METADATA.encode())), read_metadata),
    ("chexpert.csv", lambda path: path.write_text(LABELS), read_labels),
    ("split.csv", lambda path: path.write_text(SPLIT), lambda path: read_split(path, "train")),
    ("reports.zip", write_zip, read_zip),
    (
        "report.xml",
        lambda path: path.write_bytes(write_report(1, major=["Cardiomegaly"])),
        lambda path: parse_openi_report(path.read_bytes(), path.name),
    ),
    (
        "reports.tgz",
        lambda path: write_archive(path, {f"{n}.xml": write_report(n) for n in range(3)}),
        lambda path: list(read_reports(path)),
    ),
    (
        "reports.tar",
        lambda path: write_archive(path, {f"{n}.xml": write_report(n) for n in range(3)}, "w"),
        lambda path: list(read_reports(path)),
    ),
]


@pytest.fixture
def folder(tmp_path):
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "a.png")
    return tmp_path


def read_damaged(folder: Path, reader: Reader, n: int) -> dict[str, int]:
    name, write, read = reader
    write(folder / name)
    read(folder / name)
    return outcomes(read, folder / name, seed=sum(name.encode()), n=n)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader[0])
def test_damaged_tables_end_as_studies_or_as_a_sentence(folder, reader):
    assert read_damaged(folder, reader, 40)["sentence"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader[0])
def test_five_thousand_damaged_tables(folder, reader):
    assert read_damaged(folder, reader, 5_000 // len(READERS) + 1)["sentence"] > 0
