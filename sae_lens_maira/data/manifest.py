"""Studies of your own, from a table: CSV, JSON lines or Parquet, one study per row.

======================  ================================================================================
column
======================  ================================================================================
study_id                required, unique
frontal                 required: path of the current frontal image (PNG, JPEG, DICOM, ...)
patient_id              the study's own id if missing
lateral, prior_frontal  paths of further images
indication, technique, comparison, prior_report, findings
                        texts; a ``prior_report`` needs a ``prior_frontal``
view                    ``PA`` or ``AP``
acquired_at             date and time, as ISO 8601: ``2024-05-31T10:15:00``
labels                  an object from concept to ``present``, ``uncertain`` or ``absent``, or to such a word and how
                        it changed (``new``, ``larger``, ``smaller``, ``unchanged``, ``removed``):
                        ``{"effusion": "absent", "edema": ["present", "new"]}``; as JSON text in a CSV
shareable               ``true`` if images and text may leave the machine; otherwise they may not
======================  ================================================================================

Paths are relative to the table. Images are opened when they are needed. Tables are UTF-8, and every row of a CSV has a
value for every column of its header; anything else is refused with its line, because a guess would lose studies.

PadChest-GR has one JSON record per study with a list of findings: each an English sentence, its labels, and boxes that
show where it can be seen. Join the sentences to ``findings``, let ``labels`` hold each label as present, name the image
in ``frontal``, and write one line per study. Boxes have no column, because training reads none.
"""

from __future__ import annotations

import hashlib
import json
import math
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast, get_args

from sae_lens_maira.data.delimited import read_delimited
from sae_lens_maira.data.source import StudySource
from sae_lens_maira.data.study import SECTIONS, VIEWS, Change, FileImage, Label, Presence, Study, View, find_unwritable
from sae_lens_maira.errors import ManifestError, Problems, printable, quoted
from sae_lens_maira.files import from_json

_COLUMNS = {"study_id", "patient_id", "view", "acquired_at", "labels", "shareable", *VIEWS, *SECTIONS}
_DICOM_ENDINGS = {".dcm", ".dicom"}


class ManifestSource(StudySource):
    """The studies of a table. Its content hash covers the table and the size of every image.

    Raises:
        ManifestError: as :func:`read_manifest`.
    """

    def __init__(self, path: Path) -> None:
        self._studies = read_manifest(path)
        digest = hashlib.sha256(path.read_bytes())
        for study in self._studies:
            sizes = [image.path.stat().st_size for image in study.images.values() if isinstance(image, FileImage)]
            digest.update(json.dumps(sizes).encode())
        description = {"kind": "manifest", "path": path.name, "options": {}, "n_studies": len(self._studies)}
        super().__init__({**description, "content": digest.hexdigest()})

    def __len__(self) -> int:
        return len(self._studies)

    def study(self, index: int) -> Study:
        return self._studies[index]


def read_manifest(path: Path) -> list[Study]:
    """Read all studies of a table; no image is opened.

    Raises:
        ManifestError: the table is missing or malformed, images are missing, or a study is given twice.
        MissingPackageError: there are DICOM images, and pydicom is not installed.
    """
    if not path.is_file():
        raise ManifestError(f"There is no manifest '{path}'.")
    studies: list[Study] = []
    seen: set[str] = set()
    problems = Problems(ManifestError)
    for line, values in _rows(path):
        where = f"'{path}' {'row' if path.suffix == '.parquet' else 'line'} {line}"
        with problems.noted():
            study = _study(values, path, where)
            if study.study_id in seen:
                raise ManifestError(f"{where}: the study {quoted(study.study_id)} was given before.")
            seen.add(study.study_id)
            studies.append(study)
    problems.check()
    _check_packages(studies)
    if not studies:
        raise ManifestError(f"The manifest '{path}' holds no studies.")
    return studies


def _check_packages(studies: Sequence[Study]) -> None:
    """Name the package that DICOM images need before anything large is loaded."""
    if find_spec("pydicom") is not None:
        return
    from sae_lens_maira.data.image_files import missing_pydicom

    for study in studies:
        for view in VIEWS:
            image = getattr(study, view)
            if isinstance(image, FileImage) and Path(image.path).suffix.lower() in _DICOM_ENDINGS:
                raise missing_pydicom(f"{view} image '{image.path}'")


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Numbers (lines of a text, rows of a Parquet file, both from 1) and values."""
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
    elif path.suffix == ".csv":
        with path.open("rb") as file:
            yield from read_delimited(file, path, error=ManifestError)
    elif path.suffix in {".jsonl", ".ndjson"}:
        with path.open("rb") as file:
            for line, text in enumerate(file, start=1):
                content = text.removeprefix(BOM_UTF8) if line == 1 else text
                if content.strip():
                    yield line, _object(content, path, line)
    else:
        raise ManifestError(f"The manifest '{path}' must be a .csv, .jsonl or .parquet file.")


def _parquet_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            if len(set(names)) < len(names):
                raise ManifestError(
                    f"'{path}' has a column twice; its columns are {quoted(', '.join(names), 400)[1:-1]}."
                )
            number = 0
            for batch in file.iter_batches(1024):
                for values in batch.to_pylist():
                    number += 1
                    yield number, values
    except ManifestError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, LookupError, TypeError) as error:
        raise ManifestError(f"'{path}' is no Parquet file ({printable(error)}).") from error


def _object(text: bytes, path: Path, line: int) -> Mapping[str, Any]:
    try:
        values = from_json(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"'{path}' line {line} is not UTF-8 (byte 0x{text[error.start]:02x}); save the table as UTF-8."
        ) from error
    except ValueError as error:
        raise ManifestError(f"'{path}' line {line} is not valid JSON ({printable(error)}).") from error
    if not isinstance(values, dict):
        raise ManifestError(f"'{path}' line {line} holds no JSON object.")
    return values


def _study(values: Mapping[str, Any], path: Path, where: str) -> Study:
    unknown = sorted(str(name) for name in values if name not in _COLUMNS)
    if unknown:
        raise ManifestError(
            f"{where}: unknown column {quoted(', '.join(unknown), 200)[1:-1]}; there are {', '.join(sorted(_COLUMNS))}."
        )
    labels = _labels(values.get("labels"), where)
    given = {
        name: text for name, value in values.items() if name != "labels" and (text := _text(name, value, where).strip())
    }
    _check_characters({**given, **{f"label {name}": name for name in labels}}, where)
    for name in ("study_id", "frontal"):
        if name not in given:
            raise ManifestError(f"{where}: {name} is missing.")
    images: dict[View, FileImage | None] = {}
    for name in VIEWS:
        image_path = path.parent / given[name] if name in given else None
        if image_path is not None and not _is_file(image_path):
            raise ManifestError(f"{where}: the {name} image {quoted(image_path, 500)} does not exist.")
        images[name] = None if image_path is None else FileImage(image_path)
    if "prior_report" in given and images["prior_frontal"] is None:
        raise ManifestError(
            f"{where}: a prior report needs a prior frontal image; give prior_frontal, or leave prior_report empty."
        )
    view = given.get("view")
    if view not in (None, "PA", "AP"):
        raise ManifestError(f"{where}: view is {quoted(view)}, not PA or AP.")
    frontal = images["frontal"]
    assert frontal is not None
    try:
        acquired_at = datetime.fromisoformat(given["acquired_at"]) if "acquired_at" in given else None
    except ValueError as error:
        raise ManifestError(
            f"{where}: acquired_at is {quoted(given['acquired_at'])}, not as 2024-05-31T10:15:00."
        ) from error
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
        labels=labels,
        acquired_at=acquired_at,
        view=cast(Literal["PA", "AP"] | None, view),
        shareable=given.get("shareable", "").lower() in {"true", "1", "yes"},
    )


def _text(name: str, value: object, where: str) -> str:
    """A cell as text; empty where there is nothing, which tables also write as NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, dict | list | tuple | bytes):
        raise ManifestError(f"{where}: {name} is {quoted(value)}, not a text.")
    return str(value)


def _check_characters(texts: Mapping[str, str], where: str) -> None:
    for name, text in texts.items():
        wrong = "\0" if "\0" in text else find_unwritable(text)
        if wrong is not None:
            study = quoted(texts.get("study_id", "without an id"))
            raise ManifestError(
                f"{where}: {printable(name)} of the study {study} holds {printable(wrong)}, which is no character of a "
                "text; remove it."
            )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long, or a folder that must not be read
        return False


def _labels(value: object, where: str) -> dict[str, Label]:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return {}
    try:
        found = from_json(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ManifestError(f"{where}: labels are not valid JSON ({printable(error)}).") from error
    if isinstance(found, list) and all(isinstance(entry, tuple) for entry in found):
        found = dict(found)  # a Parquet map
    if not isinstance(found, dict):
        raise ManifestError(f'{where}: labels are no object such as {{"effusion": "absent"}}.')
    return {str(name): _label(name, entry, where) for name, entry in found.items() if entry is not None}


def _label(name: object, entry: object, where: str) -> Label:
    presence, change = entry if isinstance(entry, list | tuple) and len(entry) == 2 else (entry, None)
    is_known = presence in get_args(Presence) and (change is None or change in get_args(Change))
    if not is_known:
        known = f"{', '.join(get_args(Presence))}, with {', '.join(get_args(Change))} or nothing"
        shown = printable(json.dumps(entry, default=str))[:80]
        raise ManifestError(f"{where}: the label of {quoted(name)} is {shown}; it can be {known}.")
    return Label(cast(Presence, presence), cast("Change | None", change))
