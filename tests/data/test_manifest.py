"""Studies from a table of one's own."""

import json

import numpy as np
import pytest
from PIL import Image

from sae_lens_maira.data.manifest import ManifestError, read_manifest


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


def test_files_that_are_no_manifests(folder):
    with pytest.raises(ManifestError, match="There is no manifest"):
        read_manifest(folder / "none.csv")
    (folder / "a.txt").write_text("x")
    with pytest.raises(ManifestError, match=r"must be a \.csv, \.jsonl or \.parquet file"):
        read_manifest(folder / "a.txt")
    (folder / "bad.jsonl").write_text("{")
    with pytest.raises(ManifestError, match="line 1 is not valid JSON"):
        read_manifest(folder / "bad.jsonl")
