"""Any sequence of studies as a source."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from sae_lens_maira.data.source import StudySource
from sae_lens_maira.data.study import SECTIONS, VIEWS, Study


class ListedStudies(StudySource):
    """Studies that are held in memory, or read from any other sequence by index.

    They are known again by a hash of all their texts, for which the sequence is read through once, when it is needed.
    """

    def __init__(self, studies: Sequence[Study]) -> None:
        self.unusable = Counter()
        self._studies = studies

    @cached_property
    def description(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The kind ``listed``, the number of studies, and a hash of their texts and of which images they have."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            study = self.study(index)
            images = [getattr(study, view) is not None for view in VIEWS]
            texts = [getattr(study, section) for section in SECTIONS]
            digest.update(json.dumps([study.study_id, images, texts]).encode())
        return {"kind": "listed", "n_studies": len(self), "content": digest.hexdigest()}

    def __len__(self) -> int:
        return len(self._studies)

    def study(self, index: int) -> Study:
        return self._studies[index]


def as_source(studies: Sequence[Study]) -> StudySource:
    """The studies as a source, themselves if they are one."""
    return studies if isinstance(studies, StudySource) else ListedStudies(studies)
