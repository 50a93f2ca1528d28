"""MIMIC-CXR's free-text reports, and where they lie: ``files/p10/p10000032/s50414267.txt``, in a folder or a zip."""

from __future__ import annotations

import struct
import zlib
from errno import EINVAL
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from sae_lens_maira.errors import SourceError, printable

_ZIP_ERRORS = (BadZipFile, EOFError, NotImplementedError, OSError, RuntimeError, ValueError, struct.error, zlib.error)
_LARGEST_REPORT = 1 << 20
_ZIP = "mimic-cxr-reports.zip"


class ReportFolder:
    """Reports as files."""

    def __init__(self, tree: Path) -> None:
        self._tree = tree

    def read(self, subject_id: str, study_id: str) -> str | None:
        """A study's report; None if there is none."""
        try:
            return (self._tree / patient_folder(subject_id) / f"s{study_id}.txt").read_text("utf-8", errors="replace")
        except FileNotFoundError:
            return None


class ReportZip:
    """Reports inside ``mimic-cxr-reports.zip``. A copy in another process opens the archive again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._zip: ZipFile | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zip": None}

    def open(self) -> ZipFile:
        """The archive.

        Raises:
            SourceError: it cannot be read.
        """
        if self._zip is None:
            try:
                self._zip = ZipFile(self._path)
            except _ZIP_ERRORS as error:
                raise SourceError(f"'{self._path}' is not a complete zip archive ({printable(error)}).") from error
        return self._zip

    def read(self, subject_id: str, study_id: str) -> str | None:
        """A study's report; None if there is none.

        Raises:
            SourceError: the archive is damaged.
        """
        name = f"files/{patient_folder(subject_id)}/s{study_id}.txt"
        archive = self.open()
        try:
            n_bytes = archive.getinfo(name).file_size
        except KeyError:
            return None
        if n_bytes > _LARGEST_REPORT:
            raise SourceError(f"'{name}' in '{self._path}' has {n_bytes} bytes; no report is that long.")
        try:
            return archive.read(name).decode("utf-8", errors="replace")
        except _ZIP_ERRORS as error:
            if isinstance(error, OSError) and error.errno not in (None, EINVAL):
                raise  # the disk's trouble, not the archive's
            raise SourceError(
                f"'{name}' in '{self._path}' is damaged ({printable(error)}); download the archive again."
            ) from error


def open_reports(images_path: Path, path: Path | None) -> ReportFolder | ReportZip:
    """The reports at a path, or beside the images if no path is given.

    Raises:
        SourceError: there are none.
    """
    if path is None:
        beside = images_path / _ZIP
        path = beside if beside.is_file() else images_path
    if path.is_file():
        reports = ReportZip(path)
        reports.open()
        return reports
    return ReportFolder(find_tree(path, "MIMIC-CXR's reports"))


def patient_folder(subject_id: str) -> str:
    """The folder of a patient's studies, relative to the tree."""
    return f"p{subject_id[:2]}/p{subject_id}"


def find_tree(path: Path, what: str) -> Path:
    """The folder that holds ``p10`` and so on: ``files`` in the given folder, or the given folder itself.

    Raises:
        SourceError: there is none.
    """
    for folder in (path / "files", path):
        if folder.is_dir() and next(folder.glob("p[0-9]*"), None) is not None:
            return folder
    raise SourceError(f"'{path}' does not hold {what}: it has no folder such as files/p10.")
