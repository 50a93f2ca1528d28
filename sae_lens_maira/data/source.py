"""Where studies come from: one configuration, one function that opens it, one type that it gives.

    source = open_source(SourceConfig(kind="openi", missing_images="phantom"))
    source[17].findings      # studies by index, each made when it is asked for
    source.unusable          # what was left out, counted by reason
    source.description       # says which source this is, so that what was made from another one is refused

Kinds: ``phantom`` (generated), ``manifest`` (a table of one's own), ``openi`` (Indiana University's collection) and
``mimic_cxr`` (a local copy of MIMIC-CXR-JPG); each has its module beside this one. Importing this is light.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, overload

from sae_lens_maira.data.study import Study
from sae_lens_maira.errors import SourceError

Kind = Literal["phantom", "manifest", "openi", "mimic_cxr"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MissingImages = Literal["skip", "phantom"]
MissingFindings = Literal["skip", "substitute"]
LabelTable = Literal["chexpert", "negbio"]
Split = Literal["train", "validate", "test"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "kind": get_args(Kind),
    "missing_images": get_args(MissingImages),
    "missing_findings": get_args(MissingFindings),
    "labels": get_args(LabelTable),
    "split": get_args(Split),
}
_OPTIONS: dict[Kind, tuple[str, ...]] = {
    "phantom": ("seed",),
    "manifest": (),
    "openi": ("images", "missing_images", "missing_findings", "shareable"),
    "mimic_cxr": ("reports", "missing_findings", "labels", "split"),
}
"""Settings that a kind knows beside `path`, `n_studies` and `n_held_out`."""


@dataclass(frozen=True)
class SourceConfig:
    """Where studies come from.

    Args:
        kind: ``phantom`` generates studies; ``manifest`` reads a table of your own, ``openi`` Indiana University's
            reports and images, ``mimic_cxr`` a local copy of MIMIC-CXR-JPG (see the modules of ``data/``).
        path: the manifest's file; Open-i's reports (a folder, or the ``.tgz``; the copy inside the package
            torchxrayvision if not given); or MIMIC-CXR-JPG's folder.
        n_studies: how many to use, from the start; None for all. The phantom needs a number.
        seed: of the phantom's studies.
        images: Open-i's PNG images, a folder, a ``.tar``, or the ``.tgz`` as published, which is unpacked once into the
            package's cache; the reports' folder if not given.
        reports: MIMIC-CXR's free-text reports, a folder or ``mimic-cxr-reports.zip``; beside the images if not given.
        missing_images: what becomes of an Open-i study without images: ``skip`` it, or draw its findings with the
            ``phantom``.
        missing_findings: what becomes of a study whose report has no findings: ``skip`` it, or ``substitute`` the
            report's untitled body or else its impression.
        labels: MIMIC-CXR's label table.
        split: MIMIC-CXR's official split; None for all of them.
        shareable: allow Open-i's images and text to leave the machine; its licence (CC BY-NC-ND 4.0) asks for
            attribution, and forbids commercial use and changed copies.
        n_held_out: studies at the end that are kept for the evaluation after training.
    """

    kind: Kind = "phantom"
    path: str | None = None
    n_studies: int | None = None
    seed: int = 0
    images: str | None = None
    reports: str | None = None
    missing_images: MissingImages = "skip"
    missing_findings: MissingFindings = "skip"
    labels: LabelTable = "chexpert"
    split: Split | None = None
    shareable: bool = False
    n_held_out: int = 64

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value not in known and not (name == "split" and value is None):
                choices = f"{', '.join(known[:-1])} or {known[-1]}"
                raise SourceError(f"source.{name} '{value}' is unknown; choose {choices}.")
        always = ("kind", "path", "n_studies", "n_held_out")
        for field in fields(self):
            if field.name not in (*always, *_OPTIONS[self.kind]) and getattr(self, field.name) != field.default:
                known = ", ".join(_OPTIONS[self.kind]) or "none of its own"
                raise SourceError(f"source.{field.name} means nothing to kind {self.kind}; its settings are {known}.")
        if self.kind == "phantom" and self.n_studies is None:
            raise SourceError("source.n_studies is missing: say how many phantom studies to generate.")
        if self.n_studies is not None and self.n_studies < 1:
            raise SourceError(f"source.n_studies is {self.n_studies}; use at least one study.")
        if self.kind == "manifest" and self.path is None:
            raise SourceError("source.path is missing: the manifest's file.")
        if self.kind == "mimic_cxr" and self.path is None:
            raise SourceError("source.path is missing: the folder of MIMIC-CXR-JPG.")

    @property
    def options(self) -> dict[str, Any]:
        """The settings that decide what is in a study of this kind, for descriptions; of paths, only the names."""
        values = {name: getattr(self, name) for name in _OPTIONS[self.kind] if name != "shareable"}
        return {k: Path(v).name if k in ("images", "reports") and v is not None else v for k, v in values.items()}


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
