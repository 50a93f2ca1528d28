"""Open-i: Indiana University's collection of chest X-rays (Demner-Fushman et al. 2016), as a source.

Reports are XML files (see `openi_reports.py`), images PNG files named after the ids in the reports (`openi_images.py`).
Open-i does not say which image is frontal: the first one of a report is taken for it and the second one for the
lateral, unless there is a table ``indiana_projections.csv`` (columns ``filename`` and ``projection``, ``Frontal`` or
``Lateral``) beside the images. There are no priors. ``missing_images: phantom`` draws a report's MeSH tags where there
is no image (see `mesh.py`), so that real language can be used without a download.

The collection's licence is CC BY-NC-ND 4.0: it may be passed on unchanged, with attribution and not for profit. A
dashboard or an SAE's examples are excerpts, which the licence may not cover, and whether a use is commercial only its
user knows; so studies are not shareable unless ``shareable: true`` says so.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Literal

from sae_lens_maira.data.openi_images import find_images, image_key
from sae_lens_maira.data.openi_reports import (
    OpeniReport,
    packaged_reports,
    parse_openi_report,
    read_reports,
    report_number,
)
from sae_lens_maira.data.source import OpeniConfig, StudySource
from sae_lens_maira.data.study import LazyImage, Study
from sae_lens_maira.errors import SourceError

_PROJECTIONS = "indiana_projections.csv"


class OpeniSource(StudySource):
    """Open-i's studies, by the number of their report.

    Args:
        config: where it lies, and what is taken from it.

    Raises:
        SourceError: reports or images are missing or malformed.
    """

    def __init__(self, config: OpeniConfig) -> None:
        path = packaged_reports() if config.path is None else Path(config.path)
        digest = hashlib.sha256()
        reports: list[OpeniReport] = []
        for name, xml in sorted(read_reports(path)):
            digest.update(json.dumps([name, hashlib.sha256(xml).hexdigest()]).encode())
            reports.append(parse_openi_report(xml, name))
        folder = Path(config.images) if config.images is not None else path if path.is_dir() else None
        keys = {image_key(name) for report in reports for name in report.image_ids}
        self._images = {} if folder is None else find_images(folder, keys)
        self._laterals = None if folder is None else _laterals(folder)
        for key, (_, n_bytes) in sorted(self._images.items()):
            digest.update(json.dumps([key, n_bytes, key in (self._laterals or ())]).encode())
        self._draws = config.missing_images == "phantom"
        if self._draws:
            from sae_lens_maira.phantom.source import generator_hash

            digest.update(generator_hash().encode())
        self._substitutes = config.missing_findings == "substitute"
        self._shareable = config.shareable

        unusable: Counter[str] = Counter()
        self._reports: list[OpeniReport] = []
        for report in sorted(reports, key=report_number):
            reason = self._unusable(report)
            if reason is None:
                self._reports.append(report)
            else:
                unusable[reason] += 1
        description = {"kind": "openi", "path": path.name, "options": config.options, "n_studies": len(self._reports)}
        super().__init__({**description, "content": digest.hexdigest()}, unusable)

    def __len__(self) -> int:
        return len(self._reports)

    def study(self, index: int) -> Study:
        from sae_lens_maira.phantom.mesh import mesh_labels

        report = self._reports[index]
        frontal, lateral = self._views(report)
        assert frontal is not None
        return Study(
            study_id=report.report_id,
            patient_id=report.report_id,
            frontal=frontal,
            lateral=lateral,
            indication=report.indication,
            comparison=report.comparison,
            findings=self._findings(report),
            labels=mesh_labels(report.major, report.automatic),
            view=_view(report.caption or ""),
            shareable=self._shareable,
        )

    def _unusable(self, report: OpeniReport) -> str | None:
        if self._findings(report) is None:
            return "no findings"
        if self._draws or self._files(report)[0] is not None:
            return None
        return "no frontal image"

    def _findings(self, report: OpeniReport) -> str | None:
        return report.findings or (report.impression if self._substitutes else None)

    def _files(self, report: OpeniReport) -> tuple[LazyImage | None, LazyImage | None]:
        found = [key for name in report.image_ids if (key := image_key(name)) in self._images]
        if self._laterals is None:
            frontals, laterals = found[:1], found[1:2]
        else:
            laterals = [key for key in found if key in self._laterals]
            frontals = [key for key in found if key not in self._laterals]
        frontal, lateral = (self._images[keys[0]][0] if keys else None for keys in (frontals, laterals))
        return frontal, lateral

    def _views(self, report: OpeniReport) -> tuple[LazyImage | None, LazyImage | None]:
        frontal, lateral = self._files(report)
        if frontal is not None or not self._draws:
            return frontal, lateral
        from sae_lens_maira.phantom.mesh import phantom_image, phantom_state

        state = phantom_state(report.report_id, report.major, report.automatic)
        has_lateral = len(report.image_ids) > 1
        return (
            phantom_image(report.report_id, state, "frontal"),
            phantom_image(report.report_id, state, "lateral") if has_lateral else None,
        )


def _laterals(path: Path) -> set[str] | None:
    """Keys of the images that a table of projections calls lateral; None without a table."""
    table = path / _PROJECTIONS if path.is_dir() else path.parent / _PROJECTIONS
    if not table.is_file():
        return None
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    try:
        return {image_key(row["filename"]) for row in rows if row["projection"].strip().lower() == "lateral"}
    except KeyError as error:
        raise SourceError(f"'{table}' has no column {error}.") from error


def _view(caption: str) -> Literal["PA", "AP"] | None:
    said = {view for view in ("PA", "AP") if re.search(rf"\b{view}\b", caption)}
    if re.search("portable", caption, re.IGNORECASE):
        said.add("AP")
    return "PA" if said == {"PA"} else "AP" if said == {"AP"} else None
