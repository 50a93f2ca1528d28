"""MIMIC-CXR, as a source: a local copy of MIMIC-CXR-JPG's images and tables, and of MIMIC-CXR's free-text reports.

    PATH/mimic-cxr-2.0.0-{metadata,split,chexpert,negbio}.csv[.gz]
    PATH/files/p10/p10000032/s50414267/<dicom_id>.jpg
    REPORTS/files/p10/p10000032/s50414267.txt          or mimic-cxr-reports.zip, which is read in place

1. The frontal image is a PA view, or else an AP view; there is a lateral image if the study has one. Of several images
   with the same view the one with the first id is taken. Images that are not on disk are left out.
2. The prior is the newest earlier study of the patient that has a frontal image. The findings and impression of its
   report are the prior report.
3. Sections come from the free text (see ``sections.py``). A study without findings cannot be used, unless
   ``missing_findings: substitute`` takes the untitled body or the impression instead.

Opening the source reads every report once, to find the studies that can be used. Texts are not kept, and are read again
when a study is asked for. The data use agreement forbids passing anything on, so no study is ever shareable.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Literal

from tqdm.auto import tqdm

from sae_lens_maira.data.mimic_reports import find_tree, open_reports, patient_folder
from sae_lens_maira.data.mimic_tables import ImageRow, ListedStudy, find_table, read_labels, read_metadata, read_split
from sae_lens_maira.data.sections import ReportSections, parse_sections
from sae_lens_maira.data.source import MimicCxrConfig, StudySource
from sae_lens_maira.data.study import FileImage, Label, Study
from sae_lens_maira.errors import Problems, SourceError

logger = logging.getLogger(__name__)

_N_READERS = 16  # threads that read reports and file sizes; most of their time is spent waiting for the disk


@dataclass(frozen=True, slots=True)
class _Entry:
    """A study without its texts."""

    subject_id: str
    study_id: str
    acquired_at: datetime | None
    frontal: ImageRow | None
    lateral: ImageRow | None
    digest: str
    """Hash of the report's text and the images' names and sizes."""
    reason: str | None
    """Why it cannot be used; None if it can."""


class MimicCxrSource(StudySource):
    """MIMIC-CXR's studies, ordered by patient and time.

    Args:
        config: where it lies, and what is taken from it.

    Raises:
        SourceError: a table, the images or the reports are missing or malformed.
    """

    def __init__(self, config: MimicCxrConfig) -> None:
        folder = Path(config.path)
        _check_whole(folder, config)
        self._images = find_tree(folder, "MIMIC-CXR-JPG's images")
        self._reports = open_reports(folder, None if config.reports is None else Path(config.reports))
        self._substitutes = config.missing_findings == "substitute"
        labels_path = find_table(folder, config.labels)
        self._labels: dict[str, dict[str, Label]] = {} if labels_path is None else read_labels(labels_path)
        if labels_path is None:
            logger.warning("'%s' holds no table of %s labels; studies have none.", folder, config.labels)
        split = None if config.split is None else read_split(_need_table(folder, "split"), config.split)

        rows = read_metadata(_need_table(folder, "metadata"))
        found = list(tqdm(_in_threads(self._examine, rows), total=len(rows), desc="studies", delay=3))
        self._studies: list[tuple[_Entry, _Entry | None]] = []
        unusable: Counter[str] = Counter()
        digest = hashlib.sha256()
        for entry, prior in _with_priors(found):
            if split is not None and entry.study_id not in split:
                continue
            if entry.reason is not None:
                unusable[entry.reason] += 1
                continue
            self._studies.append((entry, prior))
            labels = sorted(self._labels.get(entry.study_id, {}).items())
            digest.update(json.dumps([entry.digest, prior and prior.digest, labels]).encode())
        kept = {entry.study_id for entry, _ in self._studies}
        self._labels = {study_id: labels for study_id, labels in self._labels.items() if study_id in kept}
        description = {"kind": "mimic_cxr", "path": folder.name, "options": config.options, "n_studies": len(kept)}
        super().__init__({**description, "content": digest.hexdigest()}, unusable)

    def __len__(self) -> int:
        return len(self._studies)

    def study(self, index: int) -> Study:
        entry, prior = self._studies[index]
        sections = self._sections(entry)
        assert entry.frontal is not None
        assert entry.frontal.view != "lateral"
        return Study(
            study_id=entry.study_id,
            patient_id=entry.subject_id,
            frontal=FileImage(self._image_path(entry, entry.frontal)),
            lateral=None if entry.lateral is None else FileImage(self._image_path(entry, entry.lateral)),
            prior_frontal=None
            if prior is None or prior.frontal is None
            else FileImage(self._image_path(prior, prior.frontal)),
            indication=sections.indication,
            technique=sections.technique,
            comparison=sections.comparison,
            prior_report=None if prior is None else _prior_report(self._sections(prior)),
            findings=self._findings(sections),
            labels=self._labels.get(entry.study_id, {}),
            view=entry.frontal.view,
            acquired_at=entry.acquired_at,
            shareable=False,
        )

    def _sections(self, study: _Entry | ListedStudy) -> ReportSections:
        text = self._reports.read(study.subject_id, study.study_id)
        return ReportSections() if text is None else parse_sections(text)

    def _findings(self, sections: ReportSections) -> str | None:
        return sections.findings or (sections.substitute if self._substitutes else None)

    def _image_path(self, study: _Entry | ListedStudy, image: ImageRow) -> Path:
        return self._images / patient_folder(study.subject_id) / f"s{study.study_id}" / f"{image.dicom_id}.jpg"

    def _examine(self, study: ListedStudy) -> _Entry:
        sizes = {image: size for image in study.images if (size := self._size(study, image)) is not None}
        frontal, lateral = choose(sizes, ("PA", "AP")), choose(sizes, ("lateral",))
        text = self._reports.read(study.subject_id, study.study_id)
        known = [study.study_id, str(study.acquired_at), text]
        shown = [(image.dicom_id, image.view, sizes[image]) for image in (frontal, lateral) if image is not None]
        reason = None
        if choose(study.images, ("PA", "AP")) is None:
            reason = "no frontal view"
        elif frontal is None:
            reason = "frontal image file missing"
        elif text is None:
            reason = "no report"
        elif self._findings(parse_sections(text)) is None:
            reason = "no findings"
        digest = hashlib.sha256(json.dumps([known, shown]).encode()).hexdigest()
        return _Entry(study.subject_id, study.study_id, study.acquired_at, frontal, lateral, digest, reason)

    def _size(self, study: ListedStudy, image: ImageRow) -> int | None:
        if image.view is None:
            return None
        try:
            return self._image_path(study, image).stat().st_size
        except FileNotFoundError:
            return None


def choose(images: Iterable[ImageRow], views: Sequence[Literal["PA", "AP", "lateral"]]) -> ImageRow | None:
    """The image with the earliest of some views; of several, the one with the first id."""
    shown = [image for image in images if image.view in views]
    return min(shown, key=lambda image: (views.index(image.view or "PA"), image.dicom_id), default=None)


def _in_threads(function: Callable[[ListedStudy], _Entry], rows: Sequence[ListedStudy]) -> Iterator[_Entry]:
    """Results in order. Studies are submitted in chunks, because a pool holds everything submitted in memory."""
    with ThreadPoolExecutor(_N_READERS) as pool:
        for start in range(0, len(rows), 4096):
            yield from pool.map(function, rows[start : start + 4096])


def _with_priors(entries: Sequence[_Entry]) -> Iterator[tuple[_Entry, _Entry | None]]:
    """Studies, which are ordered by patient and time, each with its prior or None."""
    for _, patient in groupby(entries, key=lambda entry: entry.subject_id):
        studies = list(patient)
        for study in studies:
            yield study, next((other for other in reversed(studies) if _can_be_prior(other, study)), None)


def _can_be_prior(other: _Entry, study: _Entry) -> bool:
    if other.frontal is None or other.acquired_at is None or study.acquired_at is None:
        return False
    return other.acquired_at < study.acquired_at


def _prior_report(sections: ReportSections) -> str | None:
    """The findings (or else the untitled body) and the impression of a report."""
    said = [sections.findings or sections.untitled, sections.impression]
    return " ".join(text for text in said if text) or None


def _check_whole(folder: Path, config: MimicCxrConfig) -> None:
    """Refuse a copy that lacks something, and name all that it lacks."""
    problems = Problems(SourceError)
    with problems.noted():
        find_tree(folder, "MIMIC-CXR-JPG's images")
    with problems.noted():
        open_reports(folder, None if config.reports is None else Path(config.reports))
    for name in ("metadata", *(() if config.split is None else ("split",))):
        with problems.noted():
            _need_table(folder, name)
    problems.check()


def _need_table(folder: Path, name: str) -> Path:
    path = find_table(folder, name)
    if path is None:
        raise SourceError(f"'{folder}' lacks the table mimic-cxr-2.0.0-{name}.csv or the same with .gz.")
    return path
