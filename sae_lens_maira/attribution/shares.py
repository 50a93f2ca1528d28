"""From the games of many studies to each feature's shares: what drives it, on average, where it is on.

A feature is on in few studies, and in the others its sources have nothing to explain. So its shares are computed over
the studies in which it fires at the place; if there are fewer than :data:`MIN_STUDIES`, over that many with the largest
pre-activation. A source's share is the sum of its Shapley values over these studies, divided by the sum of total
effects: the mean of ratios would be ruled by studies in which hardly anything changes. Shares sum to 1. One is negative
where the study's own source lowers the feature.

Shares are defined only if swapping everything lowers the feature for sure: if the interval of the total effect lies
above 0. Intervals are percentiles of a bootstrap over patients.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float

from sae_lens_maira.attribution.combinations import Game
from sae_lens_maira.attribution.shapley import interaction, shapley_values
from sae_lens_maira.attribution.swaps import SOURCES, Source
from sae_lens_maira.measures.intervals import CONFIDENCE, patient_weights

Driver = Literal["image", "prior", "text", "report"]
DRIVERS: tuple[Driver, ...] = get_args(Driver)
"""What can drive a feature: the current images, the prior study (its image and report), the request, or the report's
own words."""
SOURCES_OF: dict[Driver, tuple[Source, ...]] = {
    "image": ("current_images",),
    "prior": ("prior_image", "prior_report"),
    "text": ("prompt",),
    "report": ("report",),
}
_IMAGES: tuple[Source, ...] = ("current_images", "prior_image")
MIN_STUDIES = 8
_FEATURES_AT_ONCE = 256


@dataclass(frozen=True)
class Effects:
    """What the sources of one study do to all features.

    Args:
        shapley: each source's Shapley value; 0 for sources that the study does not have.
        interaction: of images and texts: how much they do together beyond what each does alone.
        own: the features' values when nothing is swapped.
        fires: whether they fire then.
    """

    shapley: Float[np.ndarray, "n_sources n_places n_features"]
    interaction: Float[np.ndarray, "n_places n_features"]
    own: Float[np.ndarray, "n_places n_features"]
    fires: Bool[np.ndarray, "n_places n_features"]

    @classmethod
    def of(cls, game: Game) -> Effects:
        """The effects in one study's game."""
        shapley = np.zeros((len(SOURCES), *game.values.shape[1:]), dtype=np.float32)
        shapley[[SOURCES.index(source) for source in game.sources]] = shapley_values(game.values)
        images = [player for player, source in enumerate(game.sources) if source in _IMAGES]
        texts = [player for player, source in enumerate(game.sources) if source not in _IMAGES]
        joint = interaction(game.values, images, texts).astype(np.float32)
        return cls(shapley, joint, game.values[-1], game.fires)

    def pack(self) -> dict[str, Any]:
        """As plain values for a JSON file; the inverse is :meth:`unpack`."""
        return {name: _packed(getattr(self, name)) for name in ("shapley", "interaction", "own", "fires")}

    @classmethod
    def unpack(cls, packed: Mapping[str, Any]) -> Effects:
        """Read what :meth:`pack` returned."""
        arrays = {name: _unpacked(value) for name, value in packed.items()}
        return cls(**{**arrays, "fires": arrays["fires"] != 0})


@dataclass(frozen=True)
class Shares:
    """Shares of all features at all places; the last axis of ``shares`` and ``total`` is value, low, high.

    Args:
        shares: of each driver in :data:`DRIVERS`; NaN where the total effect is not surely positive.
        total: the mean total effect of swapping everything.
        interaction: the mean interaction of images and texts, divided by the mean total effect.
        own: the mean value when nothing is swapped.
        n_studies: number of studies that the means are taken over.
        n_firing: number of studies in which the feature fires.
    """

    shares: Float[np.ndarray, "n_drivers n_places n_features 3"]
    total: Float[np.ndarray, "n_places n_features 3"]
    interaction: Float[np.ndarray, "n_places n_features"]
    own: Float[np.ndarray, "n_places n_features"]
    n_studies: Float[np.ndarray, "n_places n_features"]
    n_firing: Float[np.ndarray, "n_places n_features"]

    @property
    def is_driven(self) -> Bool[np.ndarray, "n_places n_features"]:
        """Whether the total effect is surely positive, so that there is something to share."""
        return self.total[..., 1] > 0

    def driver(self, place: int, feature: int) -> Driver | None:
        """What has the largest share; None if nothing surely drives the feature."""
        if not self.is_driven[place, feature]:
            return None
        return DRIVERS[int(self.shares[:, place, feature, 0].argmax())]


def summarize(effects: Sequence[Effects], patients: Sequence[str], *, n_resamples: int = 1000, seed: int = 0) -> Shares:
    """Each feature's shares over the studies in which it is on.

    Args:
        effects: of each study.
        patients: the patient of each study.
        n_resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    weights = np.concatenate([np.ones((1, len(effects))), patient_weights(patients, n_resamples, seed)])
    n_features = effects[0].own.shape[1]
    found = [
        _summary(effects, weights, slice(start, start + _FEATURES_AT_ONCE))
        for start in range(0, n_features, _FEATURES_AT_ONCE)
    ]
    return Shares(*(np.concatenate([part[i] for part in found], axis=2 if i == 0 else 1) for i in range(len(found[0]))))


def _summary(
    effects: Sequence[Effects], weights: Float[np.ndarray, "n_draws n_studies"], features: slice
) -> tuple[np.ndarray, ...]:
    own = np.stack([study.own[:, features] for study in effects])
    fires = np.stack([study.fires[:, features] for study in effects])
    shapley = np.stack([study.shapley[:, :, features] for study in effects]).astype(np.float64)
    joint = np.stack([study.interaction[:, features] for study in effects])
    is_used = used_studies(own, fires)
    by_driver = np.stack(
        [shapley[:, [SOURCES.index(source) for source in SOURCES_OF[driver]]].sum(axis=1) for driver in DRIVERS], axis=1
    )
    n_used = np.tensordot(weights, is_used.astype(np.float64), axes=1)
    sums = np.tensordot(weights, by_driver * is_used[:, None], axes=1)
    totals = sums.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        total = _with_interval(totals / n_used)
        share = _with_interval(sums / totals[:, None])
        share[:, ~(total[..., 1] > 0)] = np.nan
        mean_joint = (joint * is_used).sum(axis=0) / is_used.sum(axis=0) / total[..., 0]
    mean_own = (own * is_used).sum(axis=0) / is_used.sum(axis=0)
    mean_joint[~(total[..., 1] > 0)] = np.nan
    return share, total, mean_joint, mean_own, n_used[0], fires.sum(axis=0).astype(np.float64)


def used_studies(
    own: Float[np.ndarray, "n_studies n_places n_features"], fires: Bool[np.ndarray, "n_studies n_places n_features"]
) -> Bool[np.ndarray, "n_studies n_places n_features"]:
    """The studies that a feature's shares are computed over: those in which it fires, or else its largest few."""
    largest = np.argsort(np.argsort(-own, axis=0, kind="stable"), axis=0, kind="stable") < MIN_STUDIES
    return np.where(fires.sum(axis=0) >= MIN_STUDIES, fires, largest)


def _with_interval(draws: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*kept 3"]:
    """The first draw is the estimate, the others are resamples."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(draws[1:], [tail, 1 - tail], axis=0)
    return np.stack([draws[0], low, high], axis=-1)


def _packed(array: np.ndarray) -> dict[str, Any]:
    data = np.ascontiguousarray(array, dtype="<f4").tobytes()
    return {"shape": list(array.shape), "float32": base64.b64encode(data).decode("ascii")}


def _unpacked(value: Mapping[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(value["float32"]), dtype="<f4").reshape(value["shape"]).copy()
