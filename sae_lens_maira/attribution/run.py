"""A whole attribution: shares of all features, maps of some, what they do next, and one folder with all of it.

Every study is a unit that is written when it is finished, so the same command goes on after an interruption, and the
tables are put together from the units in a fixed order.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sae_lens_maira.attribution.boxes import boxes_of, read_boxes
from sae_lens_maira.attribution.carriers import Carrier, find_carriers
from sae_lens_maira.attribution.combinations import PLACES, play
from sae_lens_maira.attribution.erasing import mean_images
from sae_lens_maira.attribution.figures import by_label, carrier_figures, driver_counts, map_figures, winning_method
from sae_lens_maira.attribution.mapping import MappedFeature, choose_studies, map_study
from sae_lens_maira.attribution.next_tokens import next_effects, summarize_next
from sae_lens_maira.attribution.pictures import write_picture
from sae_lens_maira.attribution.reading import FeatureReader
from sae_lens_maira.attribution.settings import AttributionConfig
from sae_lens_maira.attribution.shares import Effects, Shares, summarize
from sae_lens_maira.attribution.swaps import Donors, sources_of
from sae_lens_maira.attribution.tables import (
    COLUMNS,
    carriers_table,
    features_table,
    home_place,
    shares_table,
)
from sae_lens_maira.attribution.work import Work
from sae_lens_maira.data.study import Box, Study
from sae_lens_maira.errors import AttributionError
from sae_lens_maira.files import hash_file
from sae_lens_maira.hooked.identity import check_sae_fits, describe_model
from sae_lens_maira.hooked.model import HookedVisionLanguageModel
from sae_lens_maira.phantom.generate import PhantomStudy
from sae_lens_maira.results import Result, Units, write_result

N_AVERAGED = 64
"""Studies over which the mean image is taken."""
UNIT_VERSION = 1
"""Raise it whenever units mean something else; older ones are refused."""


def usable_studies(model: HookedVisionLanguageModel, config: AttributionConfig) -> list[Study]:
    """The first studies of the model's source that have findings.

    Raises:
        AttributionError: there are too few, or a kind of swap is not possible with them.
    """
    studies = [study for study in model.studies[: config.n_studies] if study.findings]
    if len({study.patient_id for study in studies}) < 4:
        raise AttributionError(
            f"There are {len(studies)} studies with findings among the first {config.n_studies}, and shares need those of "
            "four patients or more; raise n_studies."
        )
    if "counterfactual" in config.swaps and not all(isinstance(study, PhantomStudy) for study in studies):
        raise AttributionError("Only the phantom can be drawn again; leave 'counterfactual' out of swaps.")
    return studies


def describe_plan(studies: Sequence[Study], config: AttributionConfig) -> str:
    """What a run would do."""
    n_combinations = sum(2 ** len(sources_of(study)) for study in studies) * len(config.swaps)
    lines = [
        f"{len(studies)} studies, {n_combinations} combinations of sources ({', '.join(config.swaps)}): every feature is "
        "read in each of them."
    ]
    if config.n_map_studies:
        which = f"{len(config.features)} features" if config.features else "the best feature of each label"
        lines.append(f"Maps of {which} in up to {config.n_map_studies} studies each: {', '.join(config.methods)}.")
    if config.n_next_studies:
        lines.append(f"Effects on the next token in {min(config.n_next_studies, len(studies))} studies.")
    return "\n".join(lines)


def attribute(
    sae: Any, model: HookedVisionLanguageModel, out: Path, config: AttributionConfig, *, overwrite: bool = False
) -> Result:
    """Attribute the features of an SAE.

    Args:
        sae: an SAE as SAE-Lens loads it.
        model: the model that it reads, bound to the studies.
        out: the folder of the result.
        config: the settings.
        overwrite: replace units that were made with other settings.

    Raises:
        AttributionError: the studies or settings do not allow it.
        SaeMismatch: the SAE belongs to another model.
        ResultError: the folder holds another run's units.
    """
    check_sae_fits(sae, model.with_studies(model.studies, model.policy))
    studies = usable_studies(model, config)
    reader = FeatureReader(model, sae, config.n_controls, config.seed)
    _refuse_unknown_features(config, reader)
    boxes = None if config.boxes is None else _load_boxes(Path(config.boxes))
    made_from = {
        "sae": {
            "d_sae": reader.n_features,
            "hook_name": str(sae.cfg.metadata.hook_name),
            "weights": _weights_hash(sae),
        },
        "model": {name: value for name, value in describe_model(model).items() if name != "token_policy"},
        "source": dict(model.studies.description),
        "boxes": None if config.boxes is None else hash_file(Path(config.boxes)),
    }
    key = {"version": UNIT_VERSION, "settings": config.to_dict() | {"boxes": None}, **made_from}
    work = Work(reader, studies, config, Units(out, key, overwrite=overwrite))
    effects = {swap: _effects(work, swap) for swap in config.swaps}
    first = effects[config.swaps[0]]
    own = np.stack([study.own for study in first])
    parts = work.parts()
    by_swap = {swap: _summary(work, found, range(len(studies))) for swap, found in effects.items()}
    reported = {swap: _summary(work, found, parts["reported"]) for swap, found in effects.items()}
    chosen, others = np.array(parts["chosen"], dtype=int), np.array(parts["reported"], dtype=int)
    carriers = find_carriers(own[:, :, : reader.n_features], studies, chosen, others, config.min_auroc)
    controls = (
        find_carriers(own[:, :, reader.n_features :], studies, chosen, others, config.min_auroc)
        if reader.n_controls
        else []
    )
    carriers += [_shifted(control, reader.n_features) for control in controls]
    carried = carriers_table(carriers, reported, studies[0], reader.n_features)
    mapped = _mapped_features(work, carriers, by_swap[config.swaps[0]], boxes)
    maps = _maps(work, own, mapped, parts, boxes) if config.n_map_studies else []
    winner = winning_method(maps, config.methods)
    for row in maps:
        row["is_winner"] = row["method"] == winner
    next_units = work.each(
        "next", range(min(config.n_next_studies, len(studies))), lambda index: next_effects(reader, studies[index])
    )
    tables = {
        "features": features_table(by_swap[config.swaps[0]], reader.n_features, _map_columns(maps, winner)),
        "shares": shares_table(by_swap, reader.n_features),
        "carriers": carried,
        "maps": _maps_table(maps),
        "map_labels": pa.Table.from_pylist(by_label(maps, winner) if winner else []),
        "next_tokens": _next_table(model, next_units, config.n_next_tokens),
    }
    summary = {
        **made_from,
        "settings": config.to_dict() | {"boxes": None if config.boxes is None else Path(config.boxes).name},
        "n_studies": len(studies),
        "parts": {name: len(indices) for name, indices in parts.items()},
        "drivers": {
            swap: {
                "features": driver_counts(shares, range(reader.n_features)),
                "random directions": driver_counts(shares, range(reader.n_features, own.shape[2])),
                "carriers": carrier_figures(carried, swap, config.min_auroc) if carriers else {},
            }
            for swap, shares in reported.items()
        },
        "maps": {"winner": winner, "methods": map_figures(maps, config.methods) if maps else {}},
        "next_tokens": {
            "agreement": float(np.mean([unit["agreement"] for unit in next_units])) if next_units else None,
            "n_studies": len(next_units),
        },
    }
    pictures = _pictures(out, maps)
    return write_result(
        out,
        "attribution",
        {name: table for name, table in tables.items() if table.num_columns},
        summary,
        columns=COLUMNS,
        files=pictures,
    )


def _effects(work: Work, swap: Any) -> list[Effects]:
    donors = Donors(work.studies, work.config.seed)

    def compute(index: int) -> dict[str, Any]:
        return Effects.of(play(work.reader, work.studies[index], donors.replacement(index, swap))).pack()

    return [Effects.unpack(unit) for unit in work.each(f"shares-{swap}", range(len(work.studies)), compute)]


def _summary(work: Work, effects: Sequence[Effects], indices: Sequence[int]) -> Shares:
    return summarize(
        [effects[index] for index in indices],
        [work.patients[index] for index in indices],
        n_resamples=work.config.n_resamples,
        seed=work.config.seed,
    )


def _mapped_features(
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


def _maps(
    work: Work,
    own: np.ndarray,
    mapped: Sequence[MappedFeature],
    parts: Mapping[str, Sequence[int]],
    boxes: Mapping[str, Mapping[str, Sequence[Box]]] | None,
) -> list[dict[str, Any]]:
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


def _map_columns(maps: Sequence[Mapping[str, Any]], winner: str | None) -> dict[int, dict[str, Any]]:
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


def _maps_table(maps: Sequence[Mapping[str, Any]]) -> pa.Table:
    names = list(dict.fromkeys(name for row in maps for name in row if name != "patient"))
    return pa.table({name: [row.get(name) for row in maps] for name in names})


def _next_table(model: HookedVisionLanguageModel, units: Sequence[dict[str, Any]], n_tokens: int) -> pa.Table:
    rows = [
        {
            "feature": node,
            "n_studies": n_studies,
            "token": token,
            "text": model.tokenizer.vocab.text_of(token),
            "effect": round(exact, 6),
            "estimate": round(estimate, 6),
        }
        for node, n_studies, token, exact, estimate in summarize_next(units, n_tokens)
    ]
    return pa.Table.from_pylist(rows)


def _pictures(out: Path, maps: Sequence[Mapping[str, Any]]) -> list[str]:
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


def _load_boxes(path: Path) -> dict[str, dict[str, list[Box]]]:
    import pyarrow.csv
    import pyarrow.parquet

    if not path.is_file():
        raise AttributionError(f"There is no table of boxes '{path}'.")
    try:
        table = pyarrow.parquet.read_table(path) if path.suffix == ".parquet" else pyarrow.csv.read_csv(path)
        return read_boxes(table.to_pylist())
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise AttributionError(
            f"'{path}' is no table of boxes ({error}); it needs study_id, label, x_min, y_min, x_max and y_max."
        ) from None


def _refuse_unknown_features(config: AttributionConfig, reader: FeatureReader) -> None:
    for feature in config.features or ():
        if not 0 <= feature < reader.n_features:
            raise AttributionError(f"There is no feature {feature}; the SAE has {reader.n_features}, counted from 0.")


def _shifted(carrier: Carrier, by: int) -> Carrier:
    from dataclasses import replace

    return replace(carrier, feature=carrier.feature + by)


def _weights_hash(sae: Any) -> str:
    from sae_lens_maira.hooked.identity import fingerprint_weights

    return fingerprint_weights(sae)
