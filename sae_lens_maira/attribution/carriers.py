"""Features that carry a label, chosen on some patients; what drives them is measured on others.

A feature carries a label at a place if the area under the ROC curve of its value there, over studies with and without
the label, is at least a threshold; if it does so for several labels, the best one counts. The places are those before
the report's first word: in the report, a label can be read off the words.

Where the studies know it, a driver is *expected*: on the phantom, images show the visible concepts, the request says
the text concepts, and a change is one from the prior study. Random directions under the same choice are the control.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from sae_lens_maira.attribution.combinations import PLACES, PlaceName
from sae_lens_maira.attribution.shares import Driver
from sae_lens_maira.data.study import Study
from sae_lens_maira.measures.ranking import auroc
from sae_lens_maira.phantom.generate import PhantomStudy
from sae_lens_maira.phantom.world.concepts import CONCEPTS

CHANGE = "change: "
CARRYING_PLACES: tuple[PlaceName, ...] = ("last_prompt", "request")
MIN_STUDIES = 4
"""Positive and negative studies that a label needs on either part."""


@dataclass(frozen=True)
class Carrier:
    """A feature that carries a label.

    Args:
        feature: its number; controls come after the features.
        place: where it was read.
        label: the label; ``change: new`` and the like stand for any finding that changed like that.
        chosen_auroc: on the patients on which it was chosen, an optimistic figure.
        auroc: on the other patients.
        is_best: whether it is the label's best one, over both places.
    """

    feature: int
    place: PlaceName
    label: str
    chosen_auroc: float
    auroc: float
    is_best: bool


def label_table(studies: Sequence[Study]) -> tuple[list[str], Bool[np.ndarray, "n_studies n_labels"]]:
    """Names of labels, and which studies are positive; kinds of change are labels, too."""
    found = [
        {name for name, label in study.labels.items() if label.positive}
        | {f"{CHANGE}{label.change}" for label in study.labels.values() if label.change is not None}
        for study in studies
    ]
    names = sorted(set().union(*found))
    return names, np.array([[name in own for name in names] for own in found], dtype=bool).reshape(-1, len(names))


def expected_driver(study: Study, label: str) -> Driver | None:
    """What drives a feature that carries a label, where the study's source knows it."""
    if not isinstance(study, PhantomStudy):
        return None
    if label.startswith(CHANGE):
        return "prior"
    return "text" if CONCEPTS[label].kind == "text" else "image"


def find_carriers(
    own: Float[np.ndarray, "n_studies n_places n_read"],
    studies: Sequence[Study],
    chosen: Int[np.ndarray, " _"],
    others: Int[np.ndarray, " _"],
    min_auroc: float,
) -> list[Carrier]:
    """All carriers of all labels, and each label's best feature even if it is below the threshold.

    Args:
        own: the values of features at each place of ``PLACES``.
        studies: with labels.
        chosen: the studies to choose on.
        others: the studies of other patients.
        min_auroc: the threshold.
    """
    names, positive = label_table(studies)
    enough = [
        column
        for column in range(len(names))
        if all(MIN_STUDIES <= positive[part, column].sum() <= len(part) - MIN_STUDIES for part in (chosen, others))
    ]
    if not enough:
        return []
    names, positive = [names[column] for column in enough], positive[:, enough]
    places = [PLACES.index(place) for place in CARRYING_PLACES]
    fits = np.stack([auroc(own[chosen, place], positive[chosen]) for place in places])
    held_out = np.stack([auroc(own[others, place], positive[others]) for place in places])
    best = [np.unravel_index(int(fits[:, :, label].argmax()), fits.shape[:2]) for label in range(len(names))]
    found: dict[tuple[int, int, int], bool] = {}
    for place, feature in np.argwhere(fits.max(axis=2) >= min_auroc):
        found[int(place), int(feature), int(fits[place, feature].argmax())] = False
    for label, (place, feature) in enumerate(best):
        found[int(place), int(feature), label] = True
    return [
        Carrier(
            feature,
            CARRYING_PLACES[place],
            names[label],
            float(fits[place, feature, label]),
            float(held_out[place, feature, label]),
            is_best,
        )
        for (place, feature, label), is_best in sorted(found.items())
    ]
