"""Studies cut into units (a sentence, or an image), and how strongly every feature fires in each.

1. The kept tokens of a section are cut into sentences; the tokens of an image are a unit of their own.
2. A feature's activation in a unit is its strongest one among the unit's tokens.
3. A unit's facts are what is known of it (:mod:`.facts`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from scipy.sparse import csr_array

from sae_lens_maira.data.study import IMAGE_KINDS, SECTION_KINDS, VIEWS, SectionName, Study, TokenKind, View
from sae_lens_maira.features.firings import encode, strongest_in
from sae_lens_maira.features.recording import Recording
from sae_lens_maira.features.sparse import n_columns, row
from sae_lens_maira.features.subject import Subject
from sae_lens_maira.interpret.facts import Fact, Place, facts_of_image, facts_of_text

_SECTION_OF: dict[int, SectionName] = {int(kind): name for name, kind in SECTION_KINDS.items()}
_VIEW_OF: dict[TokenKind, View] = dict(zip(IMAGE_KINDS, VIEWS, strict=True))
_SENTENCE_END = re.compile(r"[.!?]\s*$")


@dataclass(frozen=True)
class Unit:
    """A sentence or an image of a study.

    Args:
        study: number of the recorded study.
        place: the section, or the view of the image.
        pieces: texts of its tokens, which joined are its text.
        start: its first token in the recording.
        facts: what is known of it.
    """

    study: int
    place: Place
    pieces: tuple[str, ...]
    start: int
    facts: frozenset[Fact] = field(repr=False)

    @property
    def text(self) -> str:
        """Its text on one line; an image's is its view in brackets."""
        return " ".join("".join(self.pieces).split())

    @property
    def tokens(self) -> slice:
        """Its tokens in the recording."""
        return slice(self.start, self.start + len(self.pieces))


@dataclass(frozen=True)
class Corpus:
    """Units of recorded studies, and the features that fire in them.

    Args:
        studies: the recorded studies.
        units: in the order of the studies and their prompts.
        activations: each feature's strongest activation in each unit, (n_units, n_features).
        firings: activations of each token, (n_tokens, n_features), from which tokens are marked.
        recording: the recorded tokens.
    """

    studies: Sequence[Study]
    units: Sequence[Unit]
    activations: csr_array
    firings: csr_array
    recording: Recording

    @property
    def n_features(self) -> int:
        return n_columns(self.activations)

    @cached_property
    def patients(self) -> np.ndarray:
        """The patient of each unit."""
        return np.array([self.studies[unit.study].patient_id for unit in self.units], dtype=object)

    @cached_property
    def study_of_unit(self) -> Int[np.ndarray, " n_units"]:
        """The recorded study of each unit."""
        return np.array([unit.study for unit in self.units], dtype=np.int64)

    def units_of_study(self, study: int) -> range:
        """The numbers of a recorded study's units."""
        first, last = np.searchsorted(self.study_of_unit, [study, study + 1])
        return range(int(first), int(last))

    def marks(self, unit: int, feature: int, share: float = 0.3) -> list[bool]:
        """Which tokens of a unit a feature marks: those with more than a share of its strongest one there."""
        tokens = self.units[unit].tokens
        values = np.zeros(tokens.stop - tokens.start)
        for place, token in enumerate(range(tokens.start, tokens.stop)):
            features, found = row(self.firings, token)
            values[place] = found[features == feature].sum()
        strongest = values.max(initial=0.0)
        return [bool(value > share * strongest) for value in values]

    def in_studies(self, studies: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n_units"]:
        """Mask of the units of some recorded studies."""
        return np.isin(self.study_of_unit, studies)


def build_corpus(
    subject: Subject, studies: Sequence[Study], folded: Any, folder: Path, *, show_progress: bool = True
) -> Corpus:
    """Cut recorded studies into units, and run the SAE on them once.

    Args:
        subject: the SAE, its model and a recording.
        studies: the source's studies, to whose indices the recording refers.
        folded: the SAE as :func:`~sae_lens_maira.features.firings.folded_copy` returns it, or anything that encodes.
        folder: for intermediate files.
        show_progress: whether to show a progress bar.
    """
    recording = subject.recording
    firings = encode(folded, recording, folder / "firings", show_progress=show_progress)
    own = [studies[int(index)] for index in recording.studies]
    units = cut_into_units(recording, own, subject.texts())
    return Corpus(
        own, units, strongest_in(firings, [unit.tokens for unit in units], folder / "units"), firings, recording
    )


def cut_into_units(recording: Recording, studies: Sequence[Study], texts: Sequence[str]) -> list[Unit]:
    """The units of all recorded studies.

    Args:
        recording: the recording.
        studies: the recorded studies, in the recording's order.
        texts: the readable text of each token id.
    """
    units: list[Unit] = []
    for number, study in enumerate(studies):
        tokens = recording.tokens(number)
        for first, last in _runs(recording, tokens):
            kind = TokenKind(recording.kinds[first])
            if kind in IMAGE_KINDS:
                view = _VIEW_OF[kind]
                pieces = tuple(f"[{view.replace('_', ' ')}]" for _ in range(first, last))
                units.append(Unit(number, view, pieces, first, facts_of_image(study, view)))
            elif int(kind) in _SECTION_OF:
                section = _SECTION_OF[int(kind)]
                own = [texts[int(token)] for token in recording.token_ids[first:last]]
                for start, stop in _sentences(own):
                    pieces = tuple(own[start:stop])
                    text = " ".join("".join(pieces).split())
                    units.append(Unit(number, section, pieces, first + start, facts_of_text(study, section, text)))
    return units


def _runs(recording: Recording, tokens: slice) -> list[tuple[int, int]]:
    """Ranges of neighboring tokens of one section, or of one image."""
    starts = np.flatnonzero(np.diff(recording.kinds[tokens].astype(np.int64), prepend=-1)) + tokens.start
    return list(zip(starts.tolist(), [*starts.tolist()[1:], tokens.stop], strict=True))


def _sentences(pieces: Sequence[str]) -> list[tuple[int, int]]:
    """Ranges of pieces that are sentences: they end at a full stop that white space or the end follows."""
    ranges: list[tuple[int, int]] = []
    start = 0
    for place, piece in enumerate(pieces):
        following = pieces[place + 1] if place + 1 < len(pieces) else " "
        if _SENTENCE_END.search(piece) and following[:1].isspace():
            ranges.append((start, place + 1))
            start = place + 1
    if start < len(pieces):
        ranges.append((start, len(pieces)))
    return [(first, last) for first, last in ranges if "".join(pieces[first:last]).strip()]
