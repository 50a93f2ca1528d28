"""What is asked where, and of whom: features are chosen on one half of the patients and scored on the other.

An *item* is one question in one region. The items of a *reading* read the same segments, so that features are pooled
and sorted once for all of them; within it, items that are asked of the same studies are scored together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from sae_lens_maira.concepts.pooled import tokens_of_studies
from sae_lens_maira.concepts.questions import UNKNOWN, Question, Truth
from sae_lens_maira.concepts.segments import NO_SENTENCE, REGIONS, Segments
from sae_lens_maira.concepts.settings import RegionName
from sae_lens_maira.data.study import TokenKind
from sae_lens_maira.measures.intervals import patient_weights
from sae_lens_maira.measures.splits import split_patients


@dataclass(frozen=True, eq=False)
class Item:
    """One question in one region.

    Args:
        number: its place among all items.
        region: name of the region.
        question: the question.
        asked: the studies that answer the question and have tokens in the region.
        positive: those that answer yes.
    """

    number: int
    region: str
    question: Question
    asked: Bool[np.ndarray, " n_studies"]
    positive: Bool[np.ndarray, " n_studies"]


@dataclass(frozen=True, eq=False)
class Reading:
    """A set of segments, and the items that read it, in groups that are asked of the same studies.

    Args:
        region: name of the region.
        segments: mask of the segments.
        n_tokens: each study's number of tokens in them.
        groups: the items.
    """

    region: str
    segments: Bool[np.ndarray, " n_segments"]
    n_tokens: Int[np.ndarray, " n_studies"]
    groups: list[list[Item]]


@dataclass(frozen=True, eq=False)
class Exam:
    """Items, and the two halves of the patients.

    Args:
        segments: of the recorded studies.
        readings: everything that is asked.
        patients: the patient of each study.
        is_choice: the studies on which features and thresholds are chosen.
        n_resamples: bootstrap resamples of the other studies' patients.
        seed: of the resamples.
    """

    segments: Segments
    readings: list[Reading]
    patients: Sequence[str]
    is_choice: Bool[np.ndarray, " n_studies"]
    n_resamples: int
    seed: int

    @property
    def items(self) -> list[Item]:
        """All items, in the order of their numbers."""
        found = [item for reading in self.readings for group in reading.groups for item in group]
        return sorted(found, key=lambda item: item.number)

    @cached_property
    def reading_of_item(self) -> dict[int, Reading]:
        """The reading of each item, by the item's number."""
        return {item.number: reading for reading in self.readings for group in reading.groups for item in group}

    @cached_property
    def weights(self) -> Float[np.ndarray, "n_studies n_resamples_plus_1"]:
        """Weights of the studies that score: all of them once, then each resample; 0 for the studies that choose."""
        scored = np.flatnonzero(~self.is_choice).tolist()
        weights = np.zeros((len(self.is_choice), self.n_resamples + 1), dtype=np.float32)
        weights[scored, 0] = 1
        own = [self.patients[study] for study in scored]
        weights[scored, 1:] = patient_weights(own, self.n_resamples, self.seed).T
        return weights


def halves(patients: Sequence[str], choice_share: float, seed: int) -> Bool[np.ndarray, " n_studies"]:
    """The studies of the patients on whom features are chosen; the other patients' studies score them."""
    parts = split_patients(patients, {"choice": choice_share, "score": 1 - choice_share}, seed)
    is_choice = np.zeros(len(patients), dtype=bool)
    is_choice[parts["choice"]] = True
    return is_choice


def set_exam(
    segments: Segments,
    truth: Truth,
    about: Bool[np.ndarray, "n_segments n_questions"],
    patients: Sequence[str],
    is_choice: Bool[np.ndarray, " n_studies"],
    *,
    regions: Sequence[RegionName] = tuple(REGIONS),
    min_studies: int = 8,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Exam:
    """Put every question in every region.

    Args:
        segments: of the recorded studies.
        truth: questions and answers.
        about: which sentences are about each question's concepts.
        patients: the patient of each study.
        is_choice: from :func:`halves`.
        regions: names of regions.
        min_studies: positive and negative studies that an item needs in each half.
        n_resamples: bootstrap resamples.
        seed: of the resamples.
    """
    readings: list[Reading] = []
    n_items = 0
    columns = list(range(len(truth.questions)))
    for name in regions:
        mask = segments.of_region(REGIONS[name])
        if REGIONS[name].leaves_out_own:
            parts = [(mask & ~about[:, column], [column]) for column in columns if about[:, column].any()]
            whole = _with_sentences(segments, len(patients))
        else:
            parts, whole = [(mask, columns)], np.ones(len(patients), dtype=bool)
        for own, asked_here in parts:
            n_tokens = tokens_of_studies(segments, own, len(patients))
            by_studies: dict[bytes, list[Item]] = {}
            for column in asked_here:
                asked = (truth.answers[:, column] != UNKNOWN) & (n_tokens > 0) & whole
                positive = truth.answers[:, column] == 1
                if _is_answerable(asked, positive, is_choice, min_studies):
                    item = Item(n_items, name, truth.questions[column], asked, positive)
                    by_studies.setdefault(asked.tobytes(), []).append(item)
                    n_items += 1
            if by_studies:
                readings.append(Reading(name, own, n_tokens, list(by_studies.values())))
    return Exam(segments, readings, patients, is_choice, n_resamples, seed)


def sizes(item: Item, is_choice: Bool[np.ndarray, " n_studies"], patients: Sequence[str]) -> Mapping[str, int]:
    """How many studies answer yes and no among those that score, and how many patients they are from."""
    scored = item.asked & ~is_choice
    n_positive = int((item.positive & scored).sum())
    n_patients = len({patients[study] for study in np.flatnonzero(scored).tolist()})
    return {"n_positive": n_positive, "n_negative": int(scored.sum()) - n_positive, "n_patients": n_patients}


def _with_sentences(segments: Segments, n_studies: int) -> Bool[np.ndarray, " n_studies"]:
    """Studies whose findings are all attributed to sentences."""
    whole = np.ones(n_studies, dtype=bool)
    whole[segments.study[(segments.kind == TokenKind.FINDINGS) & (segments.sentence == NO_SENTENCE)]] = False
    return whole


def _is_answerable(
    asked: Bool[np.ndarray, " n_studies"],
    positive: Bool[np.ndarray, " n_studies"],
    is_choice: Bool[np.ndarray, " n_studies"],
    min_studies: int,
) -> bool:
    counts = [(asked & answer & half).sum() for answer in (positive, ~positive) for half in (is_choice, ~is_choice)]
    return int(min(counts)) >= max(min_studies, 1)
