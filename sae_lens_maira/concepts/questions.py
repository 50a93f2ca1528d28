"""Yes-or-no questions about studies, from the labels of their source.

1. *Presence*: does the study show the concept? One question per label.
2. *Groups*: does it show any concept of a group, such as an effusion on either side? Groups are the inner nodes of a
   tree of concepts (device, line, side; effusion, side, size).
3. *Changes*: is the finding new, larger, smaller or unchanged? Only studies that show the finding and have a prior are
   asked, because otherwise a feature that detects the finding itself would also seem to detect its change. Whether a
   finding was removed is asked of studies that have a prior and do not show the finding any more, for the same reason.

A study that cannot answer a question is left out for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Int8

from sae_lens_maira.concepts.settings import Uncertain
from sae_lens_maira.data.study import Change, Label, Study

QuestionKind = Literal["presence", "group", "change"]
UNKNOWN = -1
_VALUE: dict[Uncertain, int] = {"positive": 1, "negative": 0, "leave_out": UNKNOWN}
_CHANGES: tuple[Change, ...] = get_args(Change)


@dataclass(frozen=True)
class Question:
    """A yes-or-no question.

    Args:
        name: unique, such as ``edema`` or ``edema: new``.
        kind: presence of one label, presence of any label of a group, or a change.
        members: the labels that it is about.
        change: the change that is asked for; None in the other kinds.
        topic: what the label is about, such as ``visible`` or ``text``; None if unknown.
    """

    name: str
    kind: QuestionKind
    members: tuple[str, ...]
    change: Change | None = None
    topic: str | None = None


@dataclass(frozen=True, eq=False)
class Truth:
    """Questions and their answers.

    Args:
        questions: one per column.
        answers: 1 for yes, 0 for no, -1 where a study cannot answer.
    """

    questions: tuple[Question, ...]
    answers: Int8[np.ndarray, "n_studies n_questions"]

    def only(self, keep: Bool[np.ndarray, " n_questions"]) -> Truth:
        """Some of the questions."""
        kept = tuple(question for question, is_kept in zip(self.questions, keep, strict=True) if is_kept)
        return Truth(kept, self.answers[:, keep])


def ask(
    labels: Sequence[Mapping[str, Label]],
    has_prior: Bool[np.ndarray, " n_studies"],
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    families: Mapping[str, Sequence[str]] | None = None,
    topics: Mapping[str, str] | None = None,
    uncertain: Uncertain = "positive",
) -> Truth:
    """All questions that labels can answer.

    Args:
        labels: of each study.
        has_prior: which studies have a prior image or report.
        groups: further nodes of the tree of concepts: a name, and the labels below it.
        families: concepts on which changes are measured, by name; each label by itself if None.
        topics: what labels are about, by name.
        uncertain: how an uncertain finding counts.
    """
    names = sorted({name for known in labels for name in known})
    presence = {name: _presence(labels, name, uncertain) for name in names}
    columns: dict[Question, np.ndarray] = {
        Question(name, "presence", (name,), topic=(topics or {}).get(name)): presence[name] for name in names
    }
    for name, members in (groups or {}).items():
        known = tuple(member for member in members if member in presence)
        if known and name not in presence:
            columns[Question(name, "group", known)] = _any([presence[member] for member in known])
    for name, members in ({name: (name,) for name in names} if families is None else families).items():
        known = tuple(member for member in members if member in presence)
        if known:
            shown = _any([presence[member] for member in known])
            changes: list[Change | None] = [_change_of(own, known) for own in labels]
            for change in _CHANGES:
                answers = _changed(change, changes, shown, has_prior)
                columns[Question(f"{name}: {change}", "change", known, change)] = answers
    answers = np.stack(list(columns.values()), axis=1) if columns else np.zeros((len(labels), 0), np.int8)
    return Truth(tuple(columns), answers)


def priors(studies: Sequence[Study]) -> Bool[np.ndarray, " n_studies"]:
    """Which studies have a prior: an image, a report, or a label that compares."""
    found = [
        study.prior_frontal is not None
        or bool(study.prior_report)
        or any(label.change is not None for label in study.labels.values())
        for study in studies
    ]
    return np.array(found, dtype=bool)


def _presence(labels: Sequence[Mapping[str, Label]], name: str, uncertain: Uncertain) -> Int8[np.ndarray, " n_studies"]:
    value = {"present": 1, "absent": 0, "uncertain": _VALUE[uncertain]}
    answers = [value[known[name].presence] if name in known else UNKNOWN for known in labels]
    return np.array(answers, dtype=np.int8)


def _any(columns: Sequence[Int8[np.ndarray, " n_studies"]]) -> Int8[np.ndarray, " n_studies"]:
    """Yes if any column says yes; no if all say no."""
    stacked = np.stack(columns)
    unknown = np.where((stacked == UNKNOWN).any(axis=0), UNKNOWN, 0)
    return np.where((stacked == 1).any(axis=0), 1, unknown).astype(np.int8)


def _change_of(known: Mapping[str, Label], members: Sequence[str]) -> Change | None:
    """The change of a family, None if unknown: that of the member that is shown, or else of those that are gone."""
    labels = [known[name] for name in members if name in known]
    found: set[Change | None] = {label.change for label in labels if label.positive}
    found = found or {label.change for label in labels}
    return found.pop() if len(found) == 1 else None


def _changed(
    change: Change,
    changes: Sequence[Change | None],
    shown: Int8[np.ndarray, " n_studies"],
    has_prior: Bool[np.ndarray, " n_studies"],
) -> Int8[np.ndarray, " n_studies"]:
    is_change = np.array([found == change for found in changes], dtype=bool)
    if change == "removed":
        asked = (shown == 0) & has_prior
    else:
        asked = (shown == 1) & np.array([found is not None and found != "removed" for found in changes], dtype=bool)
    return np.where(asked, is_change, UNKNOWN).astype(np.int8)
