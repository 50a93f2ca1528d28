"""What steered reports say, and the measures made of it.

With y_k(i, a) = 1 if the report of study i under arm a mentions concept k, and y_k(i, 0) without any edit:

- insertion of c: the mean of y_c(i, a) - y_c(i, 0) over the studies that do not show c;
- removal of c: the mean of y_c(i, 0) - y_c(i, a) over studies that show c;
- off target: the mean over studies and over all other concepts k of abs(y_k(i, a) - y_k(i, 0)), so that a mention that
  appears in one study does not make up for one that disappears in another; and the same for each other concept;
- coherent: the share of reports that end by themselves and whose sentences are all read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from sae_lens_maira.measures.intervals import Interval, bootstrap_mean
from sae_lens_maira.steering.reports import SteeredReport
from sae_lens_maira.steering.world import World


def as_unit(report: SteeredReport, world: World, nats: float | None, *, keep_text: bool) -> dict[str, Any]:
    """A report as plain values for a finished unit.

    Args:
        report: the report.
        world: reads it.
        nats: per token under the unsteered model; None if that was not measured.
        keep_text: whether its text may be kept.
    """
    said = world.read(report.text)
    values: dict[str, Any] = {
        "mentions": sorted(world.concepts.index(name) for name in said.mentions if name in world.concepts),
        "n_sentences": said.n_sentences,
        "n_unread": said.n_unread,
        "n_tokens": len(report.tokens),
        "ending": report.ending,
        "n_asked": report.n_asked,
        "n_edited": report.n_edited,
        "nats": nats,
    }
    return {**values, "text": report.text} if keep_text else values


@dataclass(frozen=True)
class Outcomes:
    """Reports of some studies under some arms, as arrays.

    Args:
        patients: of each study.
        shown: which concepts each study shows.
        before: which concepts the unsteered reports mention.
        mentions: which concepts the steered reports mention.
        coherent: whether a steered report ended by itself and was read completely.
        looped: whether it was stopped because it repeated itself.
        n_tokens: its length; ``tokens_before`` is that of the unsteered report.
        unread: sentences outside of the grammar, as a share.
        nats: per token under the unsteered model; NaN if not measured.
        missed: positions that were asked for and not edited.
    """

    patients: list[str]
    shown: Bool[np.ndarray, "n_studies n_concepts"]
    before: Bool[np.ndarray, "n_studies n_concepts"]
    mentions: Bool[np.ndarray, "n_studies n_arms n_concepts"]
    coherent: Bool[np.ndarray, "n_studies n_arms"]
    looped: Bool[np.ndarray, "n_studies n_arms"]
    n_tokens: Float[np.ndarray, "n_studies n_arms"]
    tokens_before: Float[np.ndarray, " n_studies"]
    unread: Float[np.ndarray, "n_studies n_arms"]
    nats: Float[np.ndarray, "n_studies n_arms"]
    missed: Float[np.ndarray, "n_studies n_arms"]


def gather(units: Sequence[dict[str, Any]], n_concepts: int) -> Outcomes:
    """Arrays of finished units, each one study: its unsteered report and those of all arms."""

    def flags(indices: Sequence[int]) -> np.ndarray:
        found = np.zeros(n_concepts, dtype=bool)
        found[list(indices)] = True
        return found

    def table(value: Any, dtype: Any = np.float64) -> np.ndarray:
        return np.array([[value(report) for report in unit["arms"]] for unit in units], dtype=dtype)

    n_arms = len(units[0]["arms"])
    mentions = np.zeros((len(units), n_arms, n_concepts), dtype=bool)
    for row, unit in enumerate(units):
        for column, report in enumerate(unit["arms"]):
            mentions[row, column] = flags(report["mentions"])
    return Outcomes(
        patients=[unit["patient"] for unit in units],
        shown=np.stack([flags(unit["shown"]) for unit in units]),
        before=np.stack([flags(unit["before"]["mentions"]) for unit in units]),
        mentions=mentions,
        coherent=table(lambda own: own["ending"] == "end" and own["n_unread"] == 0, bool),
        looped=table(lambda own: own["ending"] == "repetition", bool),
        n_tokens=table(lambda own: own["n_tokens"]),
        tokens_before=np.array([unit["before"]["n_tokens"] for unit in units], dtype=np.float64),
        unread=table(lambda own: own["n_unread"] / max(own["n_sentences"], 1)),
        nats=table(lambda own: np.nan if own["nats"] is None else own["nats"]),
        missed=table(lambda own: own["n_asked"] - own["n_edited"]),
    )


def on_target(outcomes: Outcomes, arm: int, concept: int) -> Float[np.ndarray, " n_studies"]:
    """The change of the concept's mention in each study that does not show it; NaN in others."""
    change = outcomes.mentions[:, arm, concept].astype(float) - outcomes.before[:, concept]
    return np.where(outcomes.shown[:, concept], np.nan, change)


def off_target(outcomes: Outcomes, arm: int, concept: int) -> Float[np.ndarray, "n_studies n_concepts"]:
    """Whether the mention of each concept changed in each study; NaN for the concept itself."""
    changed = (outcomes.mentions[:, arm] != outcomes.before).astype(float)
    changed[:, concept] = np.nan
    return changed


def quality(outcomes: Outcomes, arm: int, concept: int) -> tuple[float, float]:
    """On target times what stays as it is times coherence, and the mean change off target: to choose by."""
    inserted, changed = on_target(outcomes, arm, concept), off_target(outcomes, arm, concept)
    on = float(np.nanmean(inserted)) if np.isfinite(inserted).any() else 0.0
    off = float(np.nanmean(changed))
    return on * (1 - off) * float(outcomes.coherent[:, arm].mean()), off


def best_arm(outcomes: Outcomes, arms: Sequence[int], concept: int, max_off_target: float) -> int:
    """The arm of the best quality among those that change little else; if there is none, the one that changes least."""
    scores = {arm: quality(outcomes, arm, concept) for arm in arms}
    tame = [arm for arm in arms if scores[arm][1] <= max_off_target]
    if not tame:
        return min(arms, key=lambda arm: scores[arm][1])
    return max(tame, key=lambda arm: scores[arm][0])


def interval_of(values: Float[np.ndarray, " n_studies"], patients: Sequence[str]) -> Interval:
    """A mean over studies, in points, with its interval over patients."""
    found = bootstrap_mean(values, patients)
    return Interval(*(100 * part for part in found))
