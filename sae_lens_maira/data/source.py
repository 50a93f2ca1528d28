"""Where studies come from: one configuration per kind of source, and one type that all sources have.

    source = open_source(OpeniConfig(missing_images="phantom"))  # in sae_lens_maira.sources
    source[17].findings      # studies by index, each made when it is asked for
    source.unusable          # what was left out, counted by reason
    source.description       # says which source this is, so that what was made from another one is refused

Kinds: ``phantom`` (generated), ``manifest`` (a table of your own), ``openi`` (Indiana University's collection) and
``mimic_cxr`` (a local copy of MIMIC-CXR-JPG). Importing this is light.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, overload

from sae_lens_maira.data.study import Study
from sae_lens_maira.errors import SourceError
from sae_lens_maira.settings import AtLeastOne, AtLeastZero, Settings

MissingFindings: TypeAlias = Literal["skip", "substitute"]


@dataclass(frozen=True, kw_only=True)
class PhantomConfig(Settings):
    """Studies that the phantom generates.

    Args:
        n_studies: how many studies to generate.
        seed: of the studies.
        n_held_out: studies at the end that are kept for the evaluation after training.
    """

    GROUP = "source."
    ERROR = SourceError

    kind: Literal["phantom"] = "phantom"
    n_studies: AtLeastOne
    seed: AtLeastZero = 0
    n_held_out: AtLeastZero = 64


@dataclass(frozen=True, kw_only=True)
class ManifestConfig(Settings):
    """A table of your own; its columns are in ``sae_lens_maira/data/manifest.py``.

    Args:
        path: the manifest's file: CSV, JSON lines or Parquet.
        n_studies: use the first of them only; null for all.
        n_held_out: studies at the end that are kept for the evaluation after training.
    """

    GROUP = "source."
    ERROR = SourceError

    kind: Literal["manifest"] = "manifest"
    path: str
    n_studies: AtLeastOne | None = None
    n_held_out: AtLeastZero = 64


@dataclass(frozen=True, kw_only=True)
class OpeniConfig(Settings):
    """Indiana University's chest X-rays and reports (Open-i).

    Args:
        path: the reports' folder or ``.tgz``; null for the copy inside the package torchxrayvision.
        images: the PNG images: a folder, a ``.tar``, or the ``.tgz`` as published, which is unpacked once into the
            package's cache; null for the reports' folder.
        missing_images: what becomes of a study without images: ``skip`` it, or draw its findings with the ``phantom``.
        missing_findings: what becomes of a study whose report has no findings: ``skip`` it, or ``substitute`` the
            report's untitled body or else its impression.
        shareable: allow images and text to leave the machine; the collection's license (CC BY-NC-ND 4.0) asks for
            attribution, and forbids commercial use and changed copies.
        n_studies: use the first of them only; null for all.
        n_held_out: studies at the end that are kept for the evaluation after training.
    """

    GROUP = "source."
    ERROR = SourceError

    kind: Literal["openi"] = "openi"
    path: str | None = None
    images: str | None = None
    missing_images: Literal["skip", "phantom"] = "skip"
    missing_findings: MissingFindings = "skip"
    shareable: bool = False
    n_studies: AtLeastOne | None = None
    n_held_out: AtLeastZero = 64

    @property
    def options(self) -> dict[str, Any]:
        """The settings that decide what is in a study, for descriptions; of a path, only the name."""
        return {
            "images": _last_part(self.images),
            "missing_images": self.missing_images,
            "missing_findings": self.missing_findings,
        }


@dataclass(frozen=True, kw_only=True)
class MimicCxrConfig(Settings):
    """A local copy of MIMIC-CXR-JPG.

    Args:
        path: the folder of MIMIC-CXR-JPG, with its tables.
        reports: the free-text reports, a folder or ``mimic-cxr-reports.zip``; null where they lie beside the images.
        missing_findings: what becomes of a study whose report has no findings: ``skip`` it, or ``substitute`` the
            report's untitled body or else its impression.
        labels: the label table.
        split: the official split; null for all of them.
        n_studies: use the first of them only; null for all.
        n_held_out: studies at the end that are kept for the evaluation after training.
    """

    GROUP = "source."
    ERROR = SourceError

    kind: Literal["mimic_cxr"] = "mimic_cxr"
    path: str
    reports: str | None = None
    missing_findings: MissingFindings = "skip"
    labels: Literal["chexpert", "negbio"] = "chexpert"
    split: Literal["train", "validate", "test"] | None = None
    n_studies: AtLeastOne | None = None
    n_held_out: AtLeastZero = 64

    @property
    def options(self) -> dict[str, Any]:
        """The settings that decide what is in a study, for descriptions; of a path, only the name."""
        return {
            "reports": _last_part(self.reports),
            "missing_findings": self.missing_findings,
            "labels": self.labels,
            "split": self.split,
        }


SourceConfig: TypeAlias = PhantomConfig | ManifestConfig | OpeniConfig | MimicCxrConfig
"""Where studies come from; ``kind`` tells them apart."""


class StudySource(Sequence[Study], ABC):
    """Studies by index. Cheap to hold and to pickle: texts and images are read when a study is asked for or opened.

    Args:
        description: plain values that say which source this is: ``kind``, ``path`` (the name alone, as folders move),
            ``options``, ``n_studies`` and ``content``, a hash of what is in it.
        unusable: what was left out, counted by reason.
    """

    def __init__(self, description: Mapping[str, Any], unusable: Mapping[str, int] | None = None) -> None:
        self.description: dict[str, Any] = dict(description)
        self.unusable: Counter[str] = Counter(unusable or {})

    @property
    def fingerprint(self) -> str:
        """A hash of :attr:`description`; sources with the same one hold the same studies in the same order."""
        return hashlib.sha256(json.dumps(self.description, sort_keys=True).encode()).hexdigest()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def study(self, index: int) -> Study:
        """The study at an index from 0 to ``len(self) - 1``."""

    @overload
    def __getitem__(self, index: int) -> Study: ...
    @overload
    def __getitem__(self, index: slice) -> list[Study]: ...
    def __getitem__(self, index: int | slice) -> Study | list[Study]:
        if isinstance(index, slice):
            return [self.study(position) for position in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"There is no study {index} among {len(self)}.")
        return self.study(position)


class FirstStudies(StudySource):
    """The first studies of a source."""

    def __init__(self, source: StudySource, n_studies: int) -> None:
        n_studies = min(n_studies, len(source))
        super().__init__({**source.description, "n_studies": n_studies}, source.unusable)
        self._source = source
        self._n_studies = n_studies

    def __len__(self) -> int:
        return self._n_studies

    def study(self, index: int) -> Study:
        return self._source.study(index)


def _last_part(path: str | None) -> str | None:
    return None if path is None else Path(path).name
