"""A whole attribution: shares of all features, maps of some, what they do next, and one folder with all of it.

Every study is a unit that is written when it is finished, so the same command goes on after an interruption, and the
tables are put together from the units in a fixed order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from sae_lens_maira.attribution.carriers import Carrier, find_carriers
from sae_lens_maira.attribution.combinations import play
from sae_lens_maira.attribution.figures import by_label, driver_figures, map_figures, next_figures, winning_method
from sae_lens_maira.attribution.next_tokens import next_effects, summarize_next
from sae_lens_maira.attribution.plan import load_boxes, refuse_unknown_features, usable_studies
from sae_lens_maira.attribution.reading import FeatureReader
from sae_lens_maira.attribution.run_maps import columns_of_maps, make_maps, mapped_features, write_pictures
from sae_lens_maira.attribution.settings import AttributionConfig
from sae_lens_maira.attribution.shares import Effects, Shares, summarize
from sae_lens_maira.attribution.swaps import Donors, SwapKind
from sae_lens_maira.attribution.tables import (
    COLUMNS,
    carriers_table,
    features_table,
    maps_table,
    next_table,
    shares_table,
)
from sae_lens_maira.attribution.work import Work
from sae_lens_maira.files import hash_file
from sae_lens_maira.hooked.identity import check_sae_fits, describe_model, fingerprint_weights, public_model_name
from sae_lens_maira.hooked.model import HookedVisionLanguageModel
from sae_lens_maira.results import Result, Units, write_result

UNIT_VERSION = 1
"""Raise it whenever units mean something else; older ones are refused."""


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
    check_sae_fits(sae, model)
    studies = usable_studies(model, config)
    reader = FeatureReader(model, sae, config.n_controls, config.seed)
    refuse_unknown_features(config, reader.n_features)
    boxes = None if config.boxes is None else load_boxes(Path(config.boxes))
    made_from = _made_from(reader, model, config)
    key = {"version": UNIT_VERSION, "settings": config.to_dict() | {"boxes": None}, **made_from}
    work = Work(reader, studies, config, Units(out, key, overwrite=overwrite))
    effects = {swap: _effects(work, swap) for swap in config.swaps}
    own = np.stack([study.own for study in effects[config.swaps[0]]])
    parts = work.parts()
    everywhere = {swap: _summary(work, found, range(len(studies))) for swap, found in effects.items()}
    reported = {swap: _summary(work, found, parts["reported"]) for swap, found in effects.items()}
    carriers = _carriers(work, own, parts)
    mapped = mapped_features(work, carriers, everywhere[config.swaps[0]], boxes)
    maps = make_maps(work, own, mapped, parts, boxes) if config.n_map_studies else []
    winner = winning_method(maps, config.methods)
    for row in maps:
        row["is_winner"] = row["method"] == winner
    n_next = min(config.n_next_studies, len(studies))
    next_units = work.each("next", range(n_next), lambda index: next_effects(reader, studies[index]))
    carried = carriers_table(carriers, reported, studies[0], reader.n_features)
    tables = {
        "features": features_table(everywhere[config.swaps[0]], reader.n_features, columns_of_maps(maps, winner)),
        "shares": shares_table(everywhere, reader.n_features),
        "carriers": carried,
        "maps": maps_table(maps),
        "map_labels": pa.Table.from_pylist(by_label(maps, winner) if winner else []),
        "next_tokens": next_table(summarize_next(next_units, config.n_next_tokens), model.tokenizer.vocab.text_of),
    }
    summary = {
        **made_from,
        "settings": config.to_dict() | {"boxes": None if config.boxes is None else Path(config.boxes).name},
        "n_studies": len(studies),
        "parts": {name: len(indices) for name, indices in parts.items()},
        "drivers": {
            swap: driver_figures(shares, carried, swap, reader.n_features, config.min_auroc)
            for swap, shares in reported.items()
        },
        "maps": {"winner": winner, "methods": map_figures(maps, config.methods) if maps else {}},
        "next_tokens": next_figures(next_units),
    }
    pictures = write_pictures(out, maps)
    filled = {name: table for name, table in tables.items() if table.num_columns}
    return write_result(out, "attribution", filled, summary, columns=COLUMNS, files=pictures)


def _made_from(reader: FeatureReader, model: HookedVisionLanguageModel, config: AttributionConfig) -> dict[str, Any]:
    return {
        "sae": fingerprint_weights(reader.sae),
        "hook_name": str(reader.sae.cfg.metadata.hook_name),
        "model": describe_model(model) | {"model": public_model_name(model.cfg.model_name)},
        "source": dict(model.studies.description),
        "boxes": None if config.boxes is None else hash_file(Path(config.boxes)),
    }


def _carriers(
    work: Work, own: Float[np.ndarray, "n_studies n_places n_read"], parts: Mapping[str, Sequence[int]]
) -> list[Carrier]:
    """Carriers among the features, and then, by the same rule, among the controls, which come after the features."""
    chosen, others = (np.array(parts[name], dtype=int) for name in ("chosen", "reported"))
    n_features = work.reader.n_features
    groups = [own[:, :, :n_features], own[:, :, n_features:]]
    found = [
        find_carriers(group, work.studies, chosen, others, work.config.min_auroc) if group.shape[2] else []
        for group in groups
    ]
    return found[0] + [replace(carrier, feature=carrier.feature + n_features) for carrier in found[1]]


def _effects(work: Work, swap: SwapKind) -> list[Effects]:
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
