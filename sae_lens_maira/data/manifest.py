"""Studies of your own, from a table: CSV or JSON lines, one study a row.

======================  ================================================================================
column
======================  ================================================================================
study_id                required, unique
frontal                 required: path of the current frontal image (PNG, JPEG, DICOM, ...)
patient_id              the study's own id if missing
lateral, prior_frontal  paths of further images
indication, technique, comparison, prior_report, findings
                        texts
view                    ``PA`` or ``AP``
shareable               ``true`` if images and text may leave the machine; otherwise they may not
======================  ================================================================================

Paths are relative to the table. Images are opened when they are needed.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

from sae_lens_maira.data.study import FileImage, Study

_IMAGES = ("frontal", "lateral", "prior_frontal")
_TEXTS = ("indication", "technique", "comparison", "prior_report", "findings")
_COLUMNS = {"study_id", "patient_id", "view", "shareable", *_IMAGES, *_TEXTS}


class ManifestError(ValueError):
    """A manifest cannot be used; the message names the file and line."""


def read_manifest(path: Path) -> list[Study]:
    """Read all studies of a table; no image is opened.

    Raises:
        ManifestError: the table is missing or malformed, an image is missing, or a study is given twice.
    """
    if not path.is_file():
        raise ManifestError(f"There is no manifest '{path}'.")
    studies: list[Study] = []
    seen: set[str] = set()
    for line, values in _rows(path):
        study = _study(values, path, f"'{path}' line {line}")
        if study.study_id in seen:
            raise ManifestError(f"'{path}' line {line}: the study '{study.study_id}' was given before.")
        seen.add(study.study_id)
        studies.append(study)
    if not studies:
        raise ManifestError(f"The manifest '{path}' holds no studies.")
    return studies


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        if path.suffix == ".csv":
            for values in (reader := csv.DictReader(file)):
                yield reader.line_num, values
        elif path.suffix in {".jsonl", ".ndjson"}:
            for line, text in enumerate(file, start=1):
                if text.strip():
                    yield line, _object(text, path, line)
        else:
            raise ManifestError(f"The manifest '{path}' must be a .csv or .jsonl file.")


def _object(text: str, path: Path, line: int) -> Mapping[str, Any]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ManifestError(f"'{path}' line {line} is not valid JSON ({error}).") from error
    if not isinstance(values, dict):
        raise ManifestError(f"'{path}' line {line} holds no JSON object.")
    return values


def _study(values: Mapping[str, Any], path: Path, where: str) -> Study:
    unknown = sorted(str(name) for name in values if name not in _COLUMNS)
    if unknown:
        raise ManifestError(f"{where}: unknown column {', '.join(unknown)}; there are {', '.join(sorted(_COLUMNS))}.")
    given = {name: str(value).strip() for name, value in values.items() if value is not None and str(value).strip()}
    for name in ("study_id", "frontal"):
        if name not in given:
            raise ManifestError(f"{where}: {name} is missing.")
    images: dict[str, FileImage | None] = {}
    for name in _IMAGES:
        image_path = path.parent / given[name] if name in given else None
        if image_path is not None and not image_path.is_file():
            raise ManifestError(f"{where}: the {name} image '{image_path}' does not exist.")
        images[name] = None if image_path is None else FileImage(image_path)
    view = given.get("view")
    if view not in (None, "PA", "AP"):
        raise ManifestError(f"{where}: view is '{view}', not PA or AP.")
    frontal = images["frontal"]
    assert frontal is not None
    try:
        return Study(
            study_id=given["study_id"],
            patient_id=given.get("patient_id", given["study_id"]),
            frontal=frontal,
            lateral=images["lateral"],
            prior_frontal=images["prior_frontal"],
            indication=given.get("indication"),
            technique=given.get("technique"),
            comparison=given.get("comparison"),
            prior_report=given.get("prior_report"),
            findings=given.get("findings"),
            view=cast(Literal["PA", "AP"] | None, view),
            shareable=given.get("shareable", "").lower() in {"true", "1", "yes"},
        )
    except ValueError as error:
        raise ManifestError(f"{where}: {error}") from error
