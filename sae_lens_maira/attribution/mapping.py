"""Maps of chosen features in the studies in which they are strongest, with the checks of each map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_maira.attribution.boxes import boxes_of, center_prior, patches_inside, score_boxes
from sae_lens_maira.attribution.checks import agreement, curves, erase_boxes
from sae_lens_maira.attribution.combinations import PLACES, PlaceName, encode, place_positions
from sae_lens_maira.attribution.erasing import OneImage, Target, load_image
from sae_lens_maira.attribution.maps import DOMAIN, EXACT, MapMethod, make_map
from sae_lens_maira.attribution.work import Work
from sae_lens_maira.data.study import IMAGE_KINDS, VIEWS, Box, Study, View
from sae_lens_maira.hooked.embedded import embed_prompt, read_site

N_RANDOM = 4
"""Random features per image for which estimates are compared with exact patching."""
_DIGITS = 6


@dataclass(frozen=True)
class MappedFeature:
    """A feature to map.

    Args:
        feature: its number.
        place: it is read at its strongest token of this place.
        label: the label that it carries; its boxes are compared with the map. None if it is unknown.
    """

    feature: int
    place: PlaceName
    label: str | None = None


def choose_studies(
    own: Float[np.ndarray, "n_studies n_places n_read"],
    studies: Sequence[Study],
    mapped: Sequence[MappedFeature],
    parts: Mapping[str, Sequence[int]],
    n_per_feature: int,
) -> dict[int, list[MappedFeature]]:
    """The studies to map each feature in: those with its label, or all if it has none, in which it is strongest.

    Half of them, rounded up, are from each part of the patients.

    Returns:
        the features of each study, by its index.
    """
    found: dict[int, list[MappedFeature]] = {}
    for feature in mapped:
        strength = own[:, PLACES.index(feature.place), feature.feature]
        for part in parts.values():
            usable = [index for index in part if feature.label is None or has_label(studies[index], feature.label)]
            strongest = sorted(usable, key=lambda index: -strength[index])[: (n_per_feature + 1) // 2]
            for index in strongest:
                found.setdefault(index, []).append(feature)
    return dict(sorted(found.items()))


def has_label(study: Study, label: str) -> bool:
    """Whether a study is positive for a label."""
    return label in study.labels and study.labels[label].positive


def map_study(
    work: Work,
    index: int,
    mapped: Sequence[MappedFeature],
    averages: Mapping[View, OneImage],
    boxes: Mapping[str, Sequence[Box]] | None,
) -> list[dict[str, Any]]:
    """All maps of one study, and their checks, as plain values.

    Args:
        work: the run.
        index: of the study.
        mapped: the features to map in it.
        averages: the mean image of each view.
        boxes: boxes of each label; those of the study's sentences if None.
    """
    study, vlm = work.studies[index], work.reader.vlm
    images: dict[View, OneImage] = {}
    embeddings: dict[View, Tensor] = {}
    for view in study.images:
        images[view] = load_image(vlm, study, view)
        embeddings[view] = images[view].embeddings
    encoded = encode(vlm, study)
    prompt = embed_prompt(vlm, encoded, embeddings)
    with torch.no_grad():
        hidden = read_site(vlm, work.reader.place, prompt.embeddings[None])[0]
        values = work.reader.pre_activations(hidden).cpu().numpy()
    places = place_positions(encoded[1])
    found: list[dict[str, Any]] = []
    for view in work.config.views:
        if view not in images:
            continue
        at = prompt.positions(IMAGE_KINDS[VIEWS.index(view)])
        by_position: dict[int, list[MappedFeature]] = {}
        for feature in mapped:
            tokens = places[PLACES.index(feature.place)]
            position = int(tokens[values[tokens, feature.feature].argmax()])
            by_position.setdefault(position, []).append(feature)
        for position, features in by_position.items():
            if int(at.max()) >= position:
                continue
            numbers = tuple(feature.feature for feature in features)
            target = Target(work.reader, prompt, position, at, images[view], averages[view], numbers)
            maps = {method: make_map(target, method).float().cpu().numpy() for method in work.config.methods}
            random = _agreement_of_random(work, target, index)
            for number, feature in enumerate(features):
                own = dict(zip(work.config.methods, (values[number] for values in maps.values()), strict=True))
                label_boxes = (
                    None
                    if view != "frontal" or feature.label is None
                    else (boxes_of(study, feature.label) if boxes is None else boxes.get(feature.label, []))
                )
                found += _checked(work, index, view, target, feature, own, label_boxes, random)
    return found


def _checked(
    work: Work,
    index: int,
    view: View,
    target: Target,
    feature: MappedFeature,
    maps: Mapping[MapMethod, Float[np.ndarray, " n_patches"]],
    boxes: Sequence[Box] | None,
    random: Mapping[str, float],
) -> list[dict[str, Any]]:
    """One row per method, and one each for the random map and the center prior."""
    side = target.image.side
    rng = np.random.default_rng([work.config.seed, index, feature.feature, VIEWS.index(view)])
    controls = {"random": rng.random(side * side), "center": center_prior(side)}
    every = {str(method): np.asarray(values, dtype=np.float64) for method, values in maps.items()} | controls
    alone = replace(target, features=(feature.feature,))
    agreements = _agreements(maps)
    stacked = np.stack(list(every.values()))
    in_pixels = curves(alone, stacked, "pixels")
    in_embeddings = curves(alone, stacked, "embeddings")
    inside = patches_inside(boxes, side) if boxes else None
    erased = None if inside is None else erase_boxes(alone, inside, "pixels", rng)
    rows = []
    for number, (method, values) in enumerate(every.items()):
        scores = None if inside is None else score_boxes(stacked[number], inside)
        rows.append(
            {
                "feature": feature.feature,
                "label": feature.label,
                "place": feature.place,
                "study": index,
                "view": view,
                "position": target.position,
                "method": method,
                "side": side,
                "values": [round(float(value), _DIGITS) for value in values],
                **{name: _number(value) for name, value in in_pixels[number]._asdict().items()},
                "deletion_embeddings": _number(in_embeddings[number].deletion),
                "insertion_embeddings": _number(in_embeddings[number].insertion),
                "agreement": agreements.get(method),
                "agreement_random": random.get(method),
                **({} if scores is None else {f"box_{name}": value for name, value in scores._asdict().items()}),
                **({} if erased is None else {f"left_{name}": _number(v) for name, v in erased._asdict().items()}),
            }
        )
    return rows


def _agreements(maps: Mapping[MapMethod, Float[np.ndarray, " n_patches"]]) -> dict[str, float | None]:
    """The correlation of each estimated map with exact patching of the same patches."""
    found: dict[str, float | None] = {}
    for method, values in maps.items():
        exact = EXACT[DOMAIN[method]]
        if method != exact and exact in maps:
            found[method] = _number(float(agreement(values[None], maps[exact][None])[0]))
    return found


def _agreement_of_random(work: Work, target: Target, index: int) -> dict[str, float]:
    """The mean agreement of estimates with exact patching of the embeddings, for random features."""
    methods: list[MapMethod] = [
        method for method in work.config.methods if DOMAIN[method] == "embeddings" and method != "occlusion"
    ]
    if "occlusion" not in work.config.methods or not methods:
        return {}
    drawn = np.random.default_rng([work.config.seed, index]).permutation(work.reader.n_features)[:N_RANDOM]
    random = replace(target, features=tuple(int(feature) for feature in drawn))
    exact = make_map(random, "occlusion").cpu().numpy()
    found = {}
    for method in methods:
        values = agreement(make_map(random, method).cpu().numpy(), exact)
        if np.isfinite(values).any():
            found[method] = round(float(np.nanmean(values)), _DIGITS)
    return found


def _number(value: float) -> float | None:
    return round(value, _DIGITS) if np.isfinite(value) else None
