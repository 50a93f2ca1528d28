"""Which features are mapped and in which studies, and the maps of a whole run."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from sae_lens_maira.attribution.boxes import boxes_of
from sae_lens_maira.attribution.carriers import Carrier
from sae_lens_maira.attribution.combinations import PLACES
from sae_lens_maira.attribution.erasing import mean_images
from sae_lens_maira.attribution.mapping import MappedFeature, choose_studies, map_study
from sae_lens_maira.attribution.pictures import write_picture
from sae_lens_maira.attribution.shares import Shares
from sae_lens_maira.attribution.tables import home_place
from sae_lens_maira.attribution.work import Work
from sae_lens_maira.data.study import Box

N_AVERAGED = 64
"""Studies over which the mean image is taken."""


def mapped_features(
    work: Work,
    carriers: Sequence[Carrier],
    shares: Shares,
    boxes: Mapping[str, Mapping[str, Sequence[Box]]] | None,
) -> list[MappedFeature]:
    """The features that the settings name, or the best feature of each label that has boxes, or of each label."""
    if work.config.features is not None:
        return [MappedFeature(feature, PLACES[home_place(shares, feature)], None) for feature in work.config.features]
    best = [carrier for carrier in carriers if carrier.is_best and carrier.feature < work.reader.n_features]
    if boxes is None:
        boxed = {carrier.label for carrier in best if any(boxes_of(study, carrier.label) for study in work.studies)}
    else:
        boxed = {label for own in boxes.values() for label in own}
    return [
        MappedFeature(carrier.feature, carrier.place, carrier.label)
        for carrier in best
        if carrier.label in boxed or not boxed
    ]


def make_maps(
    work: Work,
    own: Float[np.ndarray, "n_studies n_places n_read"],
    mapped: Sequence[MappedFeature],
    parts: Mapping[str, Sequence[int]],
    boxes: Mapping[str, Mapping[str, Sequence[Box]]] | None,
) -> list[dict[str, Any]]:
    """One row per feature, study, image and method, controls included; see :func:`map_study`."""
    chosen = choose_studies(own, work.studies, mapped, parts, work.config.n_map_studies)
    averages = mean_images(work.reader.vlm, work.studies[:N_AVERAGED]) if chosen else {}

    def compute(index: int) -> list[dict[str, Any]]:
        known = None if boxes is None else boxes.get(work.studies[index].study_id, {})
        return map_study(work, index, chosen[index], averages, known)

    rows = [row for unit in work.each("maps", list(chosen), compute) for row in unit]
    part_of = {index: name for name, indices in parts.items() for index in indices}
    for row in rows:
        study = work.studies[row["study"]]
        row |= {"part": part_of[row["study"]], "study_id": study.study_id, "patient": study.patient_id}
    return rows


def columns_of_maps(maps: Sequence[Mapping[str, Any]], winner: str | None) -> dict[int, dict[str, Any]]:
    """Columns of the table of features, from the reported maps of the winning method."""
    found: dict[int, dict[str, list[float]]] = {}
    for row in maps:
        if row["part"] != "reported" or row["method"] not in (winner, "random"):
            continue
        own = found.setdefault(row["feature"], {"pointing": [], "deletion": [], "deletion_random": []})
        is_random = row["method"] == "random"
        if row["deletion"] is not None:
            own["deletion_random" if is_random else "deletion"].append(row["deletion"])
        if not is_random and row.get("box_pointing") is not None:
            own["pointing"].append(row["box_pointing"])
    return {
        feature: {name: float(np.mean(values)) if values else None for name, values in columns.items()}
        for feature, columns in found.items()
    }


def write_pictures(out: Path, maps: Sequence[Mapping[str, Any]]) -> list[str]:
    """The winning method's maps as PNG files: paths relative to the folder."""
    folder = out / "maps"
    if folder.is_dir():
        shutil.rmtree(folder)
    found = []
    for row in maps:
        if row["is_winner"]:
            name = f"maps/{row['feature']}-{row['study']:06d}-{row['view']}.png"
            write_picture(out / name, np.array(row["values"]), row["side"])
            found.append(name)
    return sorted(set(found))
