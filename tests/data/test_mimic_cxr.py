"""MIMIC-CXR's layout, tables and choices, on a generated miniature."""

import gzip
import pickle
import zipfile
from datetime import datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens_maira.data import FileImage, Study
from sae_lens_maira.data.mimic_reports import ReportZip
from sae_lens_maira.data.mimic_tables import parse_time, read_labels, read_metadata
from sae_lens_maira.data.source import MimicCxrConfig
from sae_lens_maira.data.study import Label
from sae_lens_maira.errors import SourceError
from sae_lens_maira.sources import open_source
from tests.damage import check_sentence
from tests.data.miniature_mimic import (
    FINDINGS,
    IMPRESSION_ONLY,
    MiniatureImage,
    MiniatureStudy,
    dicom,
    write_miniature,
    write_table,
)

ALICE, BOB = "10000032", "12345678"


def image(number, view, **settings):
    return MiniatureImage(dicom(number), view, **settings)


def hospital():
    """Two patients; the comments say what is to be seen in the test below."""
    return [
        MiniatureStudy(ALICE, "50000003", "21800708", [image(31, "AP"), image(32, "PA"), image(33, "LL")]),
        # The first study: it has no prior, and its time has lost its leading zeros.
        MiniatureStudy(ALICE, "50000001", "21800506", [image(11, "AP"), image(12, "AP")], "80556.875"),
        # Later, but without a frontal image: nobody's prior.
        MiniatureStudy(ALICE, "50000002", "21800626", [image(21, "LATERAL")]),
        # Impression only; still the prior of the next study.
        MiniatureStudy(ALICE, "50000004", "21800723", [image(41, "PA")], report=IMPRESSION_ONLY),
        MiniatureStudy(
            ALICE,
            "50000005",
            "21800805",
            [image(51, "PA"), image(52, "LATERAL", on_disk=False)],
            labels={"Atelectasis": "1.0", "Cardiomegaly": "0.0", "Edema": "-1.0"},
        ),
        # No report; still the prior image of the next study.
        MiniatureStudy(BOB, "50000011", "21500101", [image(61, "AP")], report=None, split="test"),
        MiniatureStudy(BOB, "50000012", "21500102", [image(71, ""), image(72, "PA")], split="test"),
        # Its only frontal image is not on disk.
        MiniatureStudy(BOB, "50000013", "21500103", [image(81, "PA", on_disk=False)], split="test"),
    ]


def mimic(root, **settings):
    return open_source(MimicCxrConfig(path=str(root), **settings))


@pytest.fixture
def root(tmp_path):
    return write_miniature(tmp_path / "mimic", hospital(), compress=True)


def file_name(opened):
    assert opened is None or isinstance(opened, FileImage)
    return None if opened is None else opened.path.stem


def summary(study: Study):
    return tuple(file_name(shown) for shown in (study.frontal, study.lateral, study.prior_frontal))


def test_images_and_priors_are_chosen(root):
    source = mimic(root)
    assert {study.study_id: summary(study) for study in source} == {
        "50000001": (dicom(11), None, None),
        "50000003": (dicom(32), dicom(33), dicom(11)),
        "50000005": (dicom(51), None, dicom(41)),
        "50000012": (dicom(72), None, dicom(61)),
    }
    assert [study.view for study in source] == ["AP", "PA", "PA", "PA"]
    assert [study.patient_id for study in source] == [ALICE, ALICE, ALICE, BOB]
    assert source.unusable == {
        "no frontal view": 1,
        "no findings": 1,
        "no report": 1,
        "frontal image file missing": 1,
    }
    assert not any(study.shareable for study in source)
    assert np.asarray(source[0].frontal.open()).shape == (112, 112)


def test_sections_and_prior_reports_come_from_the_free_text(root):
    first, second, third, fourth = mimic(root)
    assert second.indication == "Cough in study 50000003."
    assert second.technique == "Views of study 50000003."
    assert second.comparison == "None."
    assert second.findings == "Clear lungs in study 50000003."
    assert second.prior_report == "Clear lungs in study 50000001. Normal study 50000001."
    assert third.prior_report == "No pneumonia."
    assert first.prior_report is None
    assert fourth.prior_report is None
    assert fourth.prior_frontal is not None


def test_times_of_day_are_read_with_their_lost_zeros(root):
    assert mimic(root)[0].acquired_at == datetime(2180, 5, 6, 8, 5, 56, 875000)


@settings(deadline=None)
@given(st.datetimes(datetime(2100, 1, 1), datetime(2210, 1, 1)))
def test_times_survive_the_way_the_table_writes_them(time):
    milliseconds = time.replace(microsecond=time.microsecond // 1000 * 1000)
    number = float(milliseconds.strftime("%H%M%S.%f"))
    assert parse_time(milliseconds.strftime("%Y%m%d"), f"{number:.3f}") == milliseconds


@pytest.mark.parametrize(("date", "time"), [("", ""), ("2180", "1"), ("21800506", "noon"), ("21801301", "0")])
def test_an_unreadable_time_is_unknown(date, time):
    assert parse_time(date, time) is None


def test_labels_come_from_the_table_that_is_asked_for(root):
    expected = {"Atelectasis": Label("present"), "Cardiomegaly": Label("absent"), "Edema": Label("uncertain")}
    assert mimic(root)[2].labels == expected
    assert mimic(root)[0].labels == {}
    assert mimic(root, labels="negbio")[0].labels == {"Edema": Label("uncertain")}


def test_a_split_keeps_its_studies_and_their_counts(root):
    source = mimic(root, split="test")
    assert [study.study_id for study in source] == ["50000012"]
    assert source.unusable == {"no report": 1, "frontal image file missing": 1}
    assert len(mimic(root, split="train")) == 3
    with pytest.raises(SourceError, match="holds no study that can be used: it is empty"):
        mimic(root, split="validate")


def test_an_impression_can_stand_in_for_missing_findings(root):
    source = mimic(root, missing_findings="substitute")
    assert [study.findings for study in source if study.study_id == "50000004"] == ["No pneumonia."]
    assert "no findings" not in source.unusable


@pytest.mark.parametrize("reports", ["elsewhere", "mimic-cxr-reports.zip"])
def test_layouts_give_the_same_studies(root, tmp_path, reports):
    other = write_miniature(tmp_path / "plain" / "mimic", hospital(), compress=False, reports=tmp_path / reports)
    source, again = mimic(root), mimic(other, reports=str(tmp_path / reports))
    assert source.description["content"] == again.description["content"]
    assert [study.findings for study in source] == [study.findings for study in again]
    copied = pickle.loads(pickle.dumps(again))
    assert copied[1].findings == source[1].findings
    assert copied.fingerprint == again.fingerprint


def test_a_zip_beside_the_images_is_found(tmp_path):
    zipped = tmp_path / "mimic" / "mimic-cxr-reports.zip"
    zipped.parent.mkdir()
    write_miniature(zipped.parent, hospital(), compress=True, reports=zipped)
    assert len(mimic(zipped.parent)) == 4


def test_the_fingerprint_follows_reports_images_and_labels(root):
    fingerprints = {mimic(root).fingerprint}
    report = root / f"files/p10/p{ALICE}/s50000001.txt"
    report.write_text(FINDINGS.replace("Clear", "Hazy").format("50000001"))
    fingerprints.add(mimic(root).fingerprint)
    (root / f"files/p10/p{ALICE}/s50000003/{dicom(33)}.jpg").unlink()
    fingerprints.add(mimic(root).fingerprint)
    labels = [{"subject_id": ALICE, "study_id": "50000001", "Edema": "1.0"}]
    write_table(root / "mimic-cxr-2.0.0-chexpert.csv", labels, compress=True)
    fingerprints.add(mimic(root).fingerprint)
    fingerprints.add(mimic(root, labels="negbio").fingerprint)
    assert len(fingerprints) == 5
    assert mimic(root).fingerprint == mimic(root).fingerprint


def test_what_is_missing_is_named(root, tmp_path):
    with pytest.raises(SourceError, match="does not hold MIMIC-CXR-JPG's images"):
        mimic(tmp_path)
    with pytest.raises(SourceError, match="does not hold MIMIC-CXR's reports"):
        mimic(root, reports=str(tmp_path))
    (tmp_path / "broken.zip").write_bytes(b"no zip")
    with pytest.raises(SourceError, match=r"broken\.zip' is not a complete zip archive"):
        mimic(root, reports=str(tmp_path / "broken.zip"))
    (root / "mimic-cxr-2.0.0-split.csv.gz").unlink()
    with pytest.raises(SourceError, match=r"lacks the table mimic-cxr-2\.0\.0-split\.csv"):
        mimic(root, split="train")
    (root / "mimic-cxr-2.0.0-chexpert.csv.gz").unlink()
    assert mimic(root)[2].labels == {}


@pytest.mark.parametrize(
    ("column", "value"), [("study_id", "../../x"), ("dicom_id", "../x"), ("subject_id", ""), ("dicom_id", "a/b")]
)
def test_ids_cannot_lead_out_of_the_folder(root, column, value):
    row = {"dicom_id": dicom(1), "subject_id": ALICE, "study_id": "50000001", "ViewPosition": "PA"}
    row |= {"StudyDate": "21800506", "StudyTime": "1", column: value}
    write_table(root / "mimic-cxr-2.0.0-metadata.csv", [row], compress=True)
    with pytest.raises(SourceError, match="holds a malformed id"):
        mimic(root)


def test_broken_tables_are_named(root):
    write_table(root / "mimic-cxr-2.0.0-chexpert.csv", [{"study_id": "50000001", "Edema": "2"}], compress=True)
    with pytest.raises(SourceError, match=r"says '2' of Edema, study 50000001; use 1, 0, -1 or nothing"):
        mimic(root)
    (root / "mimic-cxr-2.0.0-chexpert.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(SourceError, match=r"chexpert\.csv\.gz' cannot be read as a table"):
        mimic(root)
    write_table(root / "mimic-cxr-2.0.0-metadata.csv", [{"dicom_id": "x"}], compress=True)
    (root / "mimic-cxr-2.0.0-chexpert.csv.gz").unlink()
    with pytest.raises(SourceError, match="lacks the column StudyDate, StudyTime, ViewPosition, study_id, subject_id"):
        mimic(root)


histories = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(["PA", "AP", "LATERAL", "OTHER"])), min_size=1, max_size=8
)


@settings(deadline=None)
@given(histories)
def test_priors_are_the_newest_earlier_study_with_a_frontal(tmp_path_factory, history):
    root = tmp_path_factory.mktemp("mimic")
    studies = [
        MiniatureStudy(
            ALICE, f"5000{k:04d}", f"2180010{day + 1}", [image(100 + k, view), image(200 + k, "PA")][: 1 + k % 2]
        )
        for k, (day, view) in enumerate(history)
    ]
    write_miniature(
        root, [*studies, MiniatureStudy(BOB, "59999999", "21000101", [image(1, "PA")])], compress=False, draw=False
    )
    by_id = {study.study_id: study for study in studies}
    for study in mimic(root):
        if study.study_id == "59999999":
            assert study.prior_frontal is None
            continue
        days = [
            other.date
            for other in studies
            if other.date < by_id[study.study_id].date and {i.view for i in other.images} & {"PA", "AP"}
        ]
        if not days:
            assert study.prior_frontal is None
        else:
            assert isinstance(study.prior_frontal, FileImage)
            prior = by_id[study.prior_frontal.path.parent.name[1:]]
            assert prior.date == max(days)
            assert any(i.dicom_id == study.prior_frontal.path.stem and i.view in ("PA", "AP") for i in prior.images)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("50000009,1\n", "line 3: the row has 2 values, but the header names 3 columns"),
        ("10000032,50000009,1,1\n", "line 3: the row has 4 values"),
        ('10000032,"50000009,1\n', "line 3: a quotation mark is opened here and never closed"),
        ("10000032,50000009,\xe9\n", r"line 3 is not UTF-8 \(byte 0xe9\)"),
        ("10000032,50000009,nan\n", "line 3 says 'nan' of Edema, study 50000009; use 1, 0, -1 or nothing"),
        ("10000032,50000001,1\n", "line 3: the study '50000001' was given before"),
    ],
)
def test_a_damaged_row_of_a_table_is_named_with_its_line(tmp_path, compress, row, message):
    content = ("subject_id,study_id,Edema\n10000032,50000001,1.0\n" + row).encode("latin-1")
    path = tmp_path / ("labels.csv.gz" if compress else "labels.csv")
    path.write_bytes(gzip.compress(content) if compress else content)
    with pytest.raises(SourceError, match=message) as caught:
        read_labels(path)
    check_sentence(str(caught.value), path.name)


def test_a_malformed_id_is_named_with_its_line(tmp_path):
    header = "dicom_id,subject_id,study_id,ViewPosition,StudyDate,StudyTime"
    (tmp_path / "m.csv").write_text(f"{header}\na,1,2,PA,,\na,1,\x1b[2J,PA,,\n")
    with pytest.raises(SourceError, match=r"m\.csv' line 3 holds a malformed id: '1', '\\x1b\[2J', 'a'\."):
        read_metadata(tmp_path / "m.csv")


def test_every_flipped_bit_of_a_compressed_table_changes_nothing_or_is_noticed(tmp_path):
    path = tmp_path / "labels.csv.gz"
    content = gzip.compress(b"subject_id,study_id,Edema\n10000032,50000001,1.0\n")
    path.write_bytes(content)
    expected = read_labels(path)
    n_noticed = 0
    for bit in range(len(content) * 8):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            assert read_labels(path) == expected
        except SourceError:
            n_noticed += 1
    assert n_noticed >= (len(content) - 10) * 8 - 8  # beside the ten bytes of the header, and padding


def test_a_damaged_report_in_a_zip_is_named(tmp_path):
    path = tmp_path / "reports.zip"
    name = "files/p10/p10000032/s50000001.txt"
    text = FINDINGS * 3
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, text)
    whole = path.read_bytes()
    place = whole.index(name.encode()) + len(name) + 20
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
    with pytest.raises(
        SourceError, match=rf"'{name}' in '.*reports\.zip' is damaged \(.*\); download the archive again"
    ):
        ReportZip(path).read("10000032", "50000001")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, " " * (1 << 21))
    with pytest.raises(SourceError, match="has 2097152 bytes; no report is that long"):
        ReportZip(path).read("10000032", "50000001")


def test_all_that_a_copy_lacks_is_told_at_once(tmp_path):
    config = MimicCxrConfig(path=str(tmp_path), reports=str(tmp_path / "reports.zip"), split="test")
    with pytest.raises(SourceError) as error:
        open_source(config)
    for lacking in ("MIMIC-CXR-JPG's images", "MIMIC-CXR's reports", "0-metadata.csv", "0-split.csv"):
        assert lacking in str(error.value)
