"""Open-i: Indiana University's collection of chest X-rays (Demner-Fushman et al. 2016), as a source.

Reports are XML files (see ``openi_reports.py``); images are PNG files named after the ids in the reports (see
``openi_images.py``). Open-i does not say which image is frontal: the first image of a report is taken as frontal and
the second as lateral, unless a table ``indiana_projections.csv`` (columns ``filename`` and ``projection``, ``Frontal``
or ``Lateral``) lies beside the images. There are no priors. With ``missing_images: phantom`` an :class:`ImageDrawer`
draws the MeSH tags of a report that has no image, so that real language can be used without a download.

The collection's license is CC BY-NC-ND 4.0: it may be passed on unchanged, with attribution and not for profit. A
dashboard or an SAE's examples are excerpts, which the license may not cover, and only its user knows whether a use is
commercial; so studies are not shareable unless ``shareable: true`` says so.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Literal, Protocol

from sae_lens_maira.data.delimited import read_delimited
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
from sae_lens_maira.errors import SourceError, quoted

_PROJECTIONS = "indiana_projections.csv"


class ImageDrawer(Protocol):
    """Draws what a report's tags say. It is picklable, as part of a source."""

    @property
    def version(self) -> str:
        """Part of the source's content hash: drawings of the same version are the same."""
        ...

    def draw(self, report: OpeniReport, view: Literal["frontal", "lateral"]) -> LazyImage: ...


class OpeniSource(StudySource):
    """Open-i's studies, in the order of their reports' numbers.

    Args:
        config: where it lies, and what is taken from it.
        drawer: draws the studies without images; without a drawer they are left out.

    Raises:
        SourceError: reports or images are missing or malformed.
    """

    def __init__(self, config: OpeniConfig, drawer: ImageDrawer | None = None) -> None:
        path = packaged_reports() if config.path is None else Path(config.path)
        digest = hashlib.sha256()
        reports: list[OpeniReport] = []
        for name, xml in sorted(read_reports(path)):
            digest.update(json.dumps([name, hashlib.sha256(xml).hexdigest()]).encode())
            reports.append(parse_openi_report(xml, name))
        _check_ids(reports, path)
        folder = Path(config.images) if config.images is not None else path if path.is_dir() else None
        keys = {image_key(name) for report in reports for name in report.image_ids}
        self._images = {} if folder is None else find_images(folder, keys)
        self._laterals = None if folder is None else _laterals(folder)
        for key, (_, n_bytes) in sorted(self._images.items()):
            digest.update(json.dumps([key, n_bytes, key in (self._laterals or ())]).encode())
        self._drawer = drawer
        if drawer is not None:
            digest.update(drawer.version.encode())
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
            labels=report.labels,
            view=_view(report.caption or ""),
            shareable=self._shareable,
        )

    def _unusable(self, report: OpeniReport) -> str | None:
        if self._findings(report) is None:
            return "no findings"
        if self._drawer is not None or self._files(report)[0] is not None:
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
        if frontal is not None or self._drawer is None:
            return frontal, lateral
        has_lateral = len(report.image_ids) > 1
        return self._drawer.draw(report, "frontal"), self._drawer.draw(report, "lateral") if has_lateral else None


def _check_ids(reports: list[OpeniReport], path: Path) -> None:
    counts = Counter(report.report_id for report in reports)
    twice = next((report_id for report_id, count in counts.items() if count > 1), None)
    if twice is not None:
        raise SourceError(f"'{path}' holds {counts[twice]} reports with the id {quoted(twice)}; remove all but one.")


def _laterals(path: Path) -> set[str] | None:
    """Keys of the images that a table of projections calls lateral; None without a table."""
    table = path / _PROJECTIONS if path.is_dir() else path.parent / _PROJECTIONS
    if not table.is_file():
        return None
    with table.open("rb") as file:
        rows = [row for _, row in read_delimited(file, table, ("filename", "projection"))]
    return {image_key(row["filename"]) for row in rows if row["projection"].strip().lower() == "lateral"}


def _view(caption: str) -> Literal["PA", "AP"] | None:
    said = {view for view in ("PA", "AP") if re.search(rf"\b{view}\b", caption)}
    if re.search("portable", caption, re.IGNORECASE):
        said.add("AP")
    return "PA" if said == {"PA"} else "AP" if said == {"AP"} else None
