"""MIMIC-CXR-JPG's tables, as PhysioNet names them: metadata, split and labels, compressed or not.

``mimic-cxr-2.0.0-metadata.csv``
    one image per row: ``dicom_id, subject_id, study_id, ViewPosition, StudyDate`` (YYYYMMDD), ``StudyTime``
    (HHMMSS.mmm without leading zeros), ...
``mimic-cxr-2.0.0-split.csv``
    one image per row: ``dicom_id, study_id, subject_id, split``
``mimic-cxr-2.0.0-chexpert.csv``, ``mimic-cxr-2.0.0-negbio.csv``
    one study per row: ``subject_id, study_id``, and one column per finding: 1 present, 0 absent, -1 uncertain, empty if
    the report does not mention it
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Literal, cast

from sae_lens_maira.data.delimited import read_delimited
from sae_lens_maira.data.study import Label
from sae_lens_maira.errors import SourceError, printable, quoted

ViewPosition = Literal["PA", "AP", "lateral"]
_VIEW_POSITIONS: dict[str, ViewPosition] = {
    "PA": "PA",
    "AP": "AP",
    "LATERAL": "lateral",
    "LL": "lateral",
    "POSTERO-ANTERIOR": "PA",
    "ANTERO-POSTERIOR": "AP",
    "LEFT LATERAL": "lateral",
}
_LABELS = {1.0: Label("present"), 0.0: Label("absent"), -1.0: Label("uncertain")}
_ID = re.compile(r"\d+")
_DICOM_ID = re.compile(r"[0-9A-Za-z-]+")


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One image of the metadata table; ``view`` is None for any projection other than these three."""

    dicom_id: str
    view: ViewPosition | None


@dataclass(slots=True)
class ListedStudy:
    """One study of the metadata table."""

    subject_id: str
    study_id: str
    acquired_at: datetime | None
    images: list[ImageRow]


def find_table(folder: Path, name: str) -> Path | None:
    """``mimic-cxr-<version>-<name>.csv`` or the same with ``.gz``; of several versions the last one."""
    found = [*folder.glob(f"mimic-cxr-*-{name}.csv"), *folder.glob(f"mimic-cxr-*-{name}.csv.gz")]
    return max(found, key=lambda path: path.name.split(".csv")[0], default=None)


def read_table(path: Path, columns: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a table, each with what to call it in a message: its file and line.

    Raises:
        SourceError: it lacks a column, a row is damaged, or it cannot be read.
    """
    try:
        with path.open("rb") as stored, gzip.open(stored) if path.suffix == ".gz" else stored as file:
            for line, row in read_delimited(cast(BinaryIO, file), path, columns):
                yield f"'{path}' line {line}", row
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"'{path}' cannot be read as a table ({printable(error)}); download it again.") from error


def read_metadata(path: Path) -> list[ListedStudy]:
    """All studies, ordered by patient and time.

    Raises:
        SourceError: the table is malformed, or an id could lead out of the folder.
    """
    studies: dict[str, ListedStudy] = {}
    needed = ("dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime")
    for where, row in read_table(path, needed):
        subject_id, study_id, dicom_id = row["subject_id"], row["study_id"], row["dicom_id"]
        if not (_ID.fullmatch(subject_id) and _ID.fullmatch(study_id) and _DICOM_ID.fullmatch(dicom_id)):
            ids = ", ".join(map(quoted, (subject_id, study_id, dicom_id)))
            raise SourceError(f"{where} holds a malformed id: {ids}.")
        if study_id not in studies:
            acquired_at = parse_time(row["StudyDate"], row["StudyTime"])
            studies[study_id] = ListedStudy(subject_id, study_id, acquired_at, [])
        position = row["ViewPosition"] or row.get("ViewCodeSequence_CodeMeaning") or ""
        studies[study_id].images.append(ImageRow(dicom_id, _VIEW_POSITIONS.get(position.strip().upper())))
    return sorted(
        studies.values(), key=lambda study: (study.subject_id, study.acquired_at or datetime.min, study.study_id)
    )


def read_split(path: Path, split: str) -> set[str]:
    """Ids of the studies in a split."""
    return {row["study_id"] for _, row in read_table(path, ("study_id", "split")) if row["split"] == split}


def read_labels(path: Path) -> dict[str, dict[str, Label]]:
    """The labels of each study's report; findings that it does not mention are left out.

    Raises:
        SourceError: a value is not 1, 0, -1 or empty, or a study is given twice.
    """
    labels: dict[str, dict[str, Label]] = {}
    for where, row in read_table(path, ("study_id",)):
        if row["study_id"] in labels:
            raise SourceError(f"{where}: the study {quoted(row['study_id'])} was given before.")
        labels[row["study_id"]] = _labels(row, where)
    return labels


def parse_time(date: str, time: str) -> datetime | None:
    """When a study was made: ``21800506``, ``80556.875`` is five past eight. None if the table does not say."""
    seconds, _, fraction = time.partition(".")
    try:
        return datetime.strptime(f"{date} {int(seconds or 0):06d}.{fraction[:6] or 0}", "%Y%m%d %H%M%S.%f")
    except ValueError:
        return None


def _labels(row: Mapping[str, str], where: str) -> dict[str, Label]:
    labels = {}
    for name, value in row.items():
        if name in ("subject_id", "study_id", "dicom_id") or not value:
            continue
        try:
            labels[name] = _LABELS[float(value)]
        except (KeyError, ValueError) as error:
            raise SourceError(
                f"{where} says {quoted(value)} of {printable(name)}, study {printable(row['study_id'])}; use 1, 0, -1 "
                "or nothing."
            ) from error
    return labels
