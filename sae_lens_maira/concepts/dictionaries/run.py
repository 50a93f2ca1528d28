"""The whole benchmark: cache, trainings and scores, each kept as soon as it is done, and one folder of results."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm.auto import tqdm

from sae_lens_maira.concepts.dictionaries.exchange import (
    concept_latents,
    detection,
    disentanglement,
    matched_latents,
)
from sae_lens_maira.concepts.dictionaries.noise import Comparison, compare
from sae_lens_maira.concepts.dictionaries.pairs import Batch, make_pairs, read_pairs
from sae_lens_maira.concepts.dictionaries.readings import density
from sae_lens_maira.concepts.dictionaries.scores import CONTROLS, Score, StudyData, control_scores, study_scores
from sae_lens_maira.concepts.dictionaries.settings import DictionariesConfig
from sae_lens_maira.concepts.dictionaries.train import Dictionary, open_or_write_cache, trained
from sae_lens_maira.hooked import HookedVisionLanguageModel
from sae_lens_maira.hooked.loading import load_model
from sae_lens_maira.results import Result, Units, write_result
from sae_lens_maira.sources import open_source

logger = logging.getLogger(__name__)

KIND = "dictionaries"
VERSION = 1
"""Raise it when a score changes its meaning: results of another version are not mixed."""


def run_benchmark(config: DictionariesConfig, out: Path, *, overwrite: bool = False) -> Result:
    """Cache, train and score; what is done already is kept.

    Args:
        config: what is compared.
        out: folder of the results; the cache and the SAEs are in it too.
        overwrite: drop scores that were made with other settings.

    Raises:
        ResultError: the folder holds scores that were made with other settings.
    """
    units = Units(out, {"version": VERSION, "config": config.to_dict()}, overwrite=overwrite)
    names = [f"{name}-seed{seed}" for seed in config.seeds for name in (*config.training.saes, *CONTROLS)]
    if not all(units.is_done(name) for name in names):
        _score_all(config, out, units)
    rows = [
        {"dictionary": name, "seed": seed, **score}
        for seed in config.seeds
        for name in (*config.training.saes, *CONTROLS)
        for score in units.read(f"{name}-seed{seed}")
    ]
    comparisons = compare_rows(rows, list(config.training.saes))
    summary = {
        "settings": {**config.to_dict(), "cache": None},
        "seeds": list(config.seeds),
        "left_out": "TPP and SCR, which failed an audit at their canonical settings (arXiv 2605.18229)",
        "comparisons": {name: _plain(own) for name, own in comparisons.items()},
    }
    tables = {"scores": pa.Table.from_pylist(rows, _SCORES), "comparisons": _comparison_table(comparisons)}
    return write_result(out, KIND, tables, summary)


def compare_rows(rows: Iterable[dict[str, Any]], dictionaries: list[str]) -> dict[str, Comparison]:
    """The dictionaries compared on every metric that is not of a single concept or group."""
    values: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        is_count = row["metric"].endswith("_pairs")
        if not row["subject"] and not is_count and row["dictionary"] in dictionaries:
            value = float("nan") if row["value"] is None else row["value"]
            values.setdefault(row["metric"], {}).setdefault(row["dictionary"], []).append(value)
    return {metric: compare(own) for metric, own in values.items()}


def describe(result: Result) -> str:
    """A table for the screen: means over seeds, the smallest difference that can be claimed, and the claims."""
    comparisons = result.summary["comparisons"]
    names = list(result.summary["settings"]["training"]["saes"])
    lines = [f"{'metric':<22}" + "".join(f"{name:>22}" for name in names) + f"{'smallest difference':>22}  claims"]
    for metric, own in comparisons.items():
        means = "".join(f"{_figure(own['means'].get(name)):>22}" for name in names)
        claims = ", ".join(f"{a} > {b}" for a, b in own["claims"]) or "none"
        lines.append(f"{metric:<22}{means}{_figure(own['smallest']):>22}  {claims}")
    return "\n".join(lines)


def _score_all(config: DictionariesConfig, out: Path, units: Units) -> None:
    studies = open_source(config.training.source)
    model = load_model(config.training.model, studies, config.training.policy)
    cache = open_or_write_cache(config, model, out)
    dictionaries = list(trained(config, cache, out))
    data = StudyData.read(config, cache, studies)
    d_sae = int(dictionaries[0].sae.cfg.d_sae)
    for seed in config.seeds:
        for name in CONTROLS:
            unit = f"{name}-seed{seed}"
            if not units.is_done(unit):
                units.write(unit, control_scores(name, seed, data, d_sae))
    missing = [own for own in dictionaries if not units.is_done(own.unit)]
    if not missing:
        return
    choosing, scoring = (_pairs(config, model, seed) for seed in (config.render_seed, config.render_seed + 1))
    for own in tqdm(missing, desc="dictionaries"):
        widths = list(config.training.saes[own.name].get("matryoshka_widths", []))
        scores = study_scores(own.sae, data, widths)
        units.write(own.unit, scores + _pair_scores(config, model, own, data, choosing, scoring))


def _pairs(config: DictionariesConfig, model: HookedVisionLanguageModel, seed: int) -> list[Batch]:
    pairs = make_pairs(config.pairs_per_concept, seed)
    return read_pairs(model, pairs, config.training.hook_name, config.kinds)


def _pair_scores(
    config: DictionariesConfig,
    model: HookedVisionLanguageModel,
    own: Dictionary,
    data: StudyData,
    choosing: list[Batch],
    scoring: list[Batch],
) -> list[Score]:
    """Scores that need counterfactual pairs."""
    found = dict(detection(own.sae, choosing, scoring)._asdict())
    chosen = concept_latents(own.sae, choosing, config.n_exchanged)
    matched = matched_latents(chosen, density(own.sae, data.tokens), own.seed)
    for latents, prefix in ((chosen, "exchange"), (matched, "exchange_matched")):
        result = disentanglement(model, own.sae, scoring, config.training.hook_name, latents)
        found |= {
            f"{prefix}_cause": result.cause,
            f"{prefix}_isolation": result.isolation,
            f"{prefix}_score": result.score,
            f"{prefix}_pairs": float(result.n_pairs),
        }
    return [{"metric": name, "subject": "", "value": _number(value)} for name, value in found.items()]


_SCORES = pa.schema(
    [
        ("dictionary", pa.string()),
        ("seed", pa.int64()),
        ("metric", pa.string()),
        ("subject", pa.string()),
        ("value", pa.float64()),
    ]
)


def _comparison_table(comparisons: dict[str, Comparison]) -> pa.Table:
    rows = [
        {
            "metric": metric,
            "dictionary": name,
            "mean": _number(mean),
            "smallest_difference": _number(own.smallest),
            "better_than": ", ".join(second for first, second in own.claims if first == name),
        }
        for metric, own in comparisons.items()
        for name, mean in own.means.items()
    ]
    return pa.Table.from_pylist(rows)


def _plain(own: Comparison) -> dict[str, Any]:
    means = {name: _number(mean) for name, mean in own.means.items()}
    return {"means": means, "smallest": _number(own.smallest), "claims": [list(pair) for pair in own.claims]}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
