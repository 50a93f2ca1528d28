"""A miniature of MIMIC-CXR-JPG and its reports, in PhysioNet's layout, with phantom images and invented reports."""

import csv
import gzip
import io
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from sae_lens_maira import phantom

FINDINGS = """\
                                 FINAL REPORT
 INDICATION:  Cough in study {0}.

 TECHNIQUE:  Views of study {0}.

 COMPARISON:  None.

 FINDINGS:

 Clear lungs in study {0}.

 IMPRESSION:

 Normal study {0}.
"""
IMPRESSION_ONLY = """\
                                 FINAL REPORT
 HISTORY:  Fever.

 IMPRESSION:  No pneumonia.
"""


@dataclass
class MiniatureImage:
    dicom_id: str
    view: str
    on_disk: bool = True


@dataclass
class MiniatureStudy:
    """`date` and `time` as the metadata table writes them; `labels` as the label tables do."""

    subject_id: str
    study_id: str
    date: str
    images: list[MiniatureImage]
    time: str = "101500.5"
    report: str | None = FINDINGS
    split: str = "train"
    labels: dict[str, str] = field(default_factory=dict)


def dicom(number: int) -> str:
    """An id in MIMIC's form."""
    return "-".join([f"{number:08x}"] * 5)


def write_miniature(
    root: Path, studies: list[MiniatureStudy], *, compress: bool, reports: Path | None = None, draw: bool = True
) -> Path:
    """Write the tree; `reports` is another folder for the reports, or a zip archive. Undrawn images are empty files."""
    root.mkdir(parents=True, exist_ok=True)
    rows = [(study, image) for study in studies for image in study.images]
    metadata = [
        {
            "dicom_id": image.dicom_id,
            "subject_id": study.subject_id,
            "study_id": study.study_id,
            "PerformedProcedureStepDescription": "CHEST (PA AND LAT)",
            "ViewPosition": image.view,
            "Rows": "112",
            "Columns": "112",
            "StudyDate": study.date,
            "StudyTime": study.time,
        }
        for study, image in rows
    ]
    split = [
        {"dicom_id": i.dicom_id, "study_id": s.study_id, "subject_id": s.subject_id, "split": s.split} for s, i in rows
    ]
    names = ["Atelectasis", "Cardiomegaly", "Edema", "No Finding"]
    labels = [
        {
            "subject_id": study.subject_id,
            "study_id": study.study_id,
            **{name: study.labels.get(name, "") for name in names},
        }
        for study in studies
    ]
    negbio = [{**row, "Edema": "-1.0"} for row in labels]
    for name, table in {"metadata": metadata, "split": split, "chexpert": labels, "negbio": negbio}.items():
        write_table(root / f"mimic-cxr-2.0.0-{name}.csv", table, compress=compress)
    texts = {}
    for number, study in enumerate(studies):
        folder = f"files/p{study.subject_id[:2]}/p{study.subject_id}"
        for image in study.images:
            if image.on_disk:
                path = root / folder / f"s{study.study_id}" / f"{image.dicom_id}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                if not draw:
                    path.touch()
                    continue
                shown = phantom.render([], anatomy_seed=number)
                lateral = image.view in ("LATERAL", "LL") and shown.lateral
                (lateral or shown.frontal).open().save(path)
        if study.report is not None:
            texts[f"{folder}/s{study.study_id}.txt"] = study.report.format(study.study_id)
    reports = reports or root
    if reports.suffix == ".zip":
        with zipfile.ZipFile(reports, "w") as archive:
            for name, text in texts.items():
                archive.writestr(name, text)
    else:
        for name, text in texts.items():
            (reports / name).parent.mkdir(parents=True, exist_ok=True)
            (reports / name).write_text(text)
    return root


def write_table(path: Path, rows: list[dict[str, str]], *, compress: bool) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    if compress:
        path.with_suffix(".csv.gz").write_bytes(gzip.compress(text.getvalue().encode()))
    else:
        path.write_text(text.getvalue())
