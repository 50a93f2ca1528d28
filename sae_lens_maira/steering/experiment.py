"""From an SAE's folder to a folder of results: tables of arms, doses, removal and features, and plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from sae_lens_maira.data.source import StudySource
from sae_lens_maira.errors import SteeringError
from sae_lens_maira.files import hash_file
from sae_lens_maira.hooked.dictionary import Dictionary, Firing
from sae_lens_maira.hooked.identity import check_sae_fits, fingerprint_weights
from sae_lens_maira.hooked.model import HookedVisionLanguageModel
from sae_lens_maira.phantom.generate import GENERATOR_VERSION
from sae_lens_maira.results import Result, Units, write_result
from sae_lens_maira.sources import open_source
from sae_lens_maira.steering.plots import plot_curves, plot_rises
from sae_lens_maira.steering.run import Experiment
from sae_lens_maira.steering.settings import SteerConfig
from sae_lens_maira.steering.tables import (
    COLUMNS,
    arm_table,
    feature_table,
    figures,
    removal_table,
    slope_table,
)
from sae_lens_maira.steering.world import PhantomWorld

WEIGHTS = "sae_weights.safetensors"
UNITS_VERSION = 1
"""Raise it when the same settings give other units."""


def load_dictionary(
    sae_path: Path, model: HookedVisionLanguageModel, n_studies: int, percentile: float
) -> tuple[Dictionary, Firing]:
    """An SAE from its folder, with strengths measured on the first studies that the model is bound to.

    Raises:
        SteeringError: there is no SAE.
        SaeMismatch: it belongs to another model.
    """
    from sae_lens import SAE

    if not (sae_path / WEIGHTS).is_file():
        raise SteeringError(f"'{sae_path}' holds no SAE ({WEIGHTS}); give the folder that train wrote.")
    sae = SAE.load_from_disk(sae_path)
    check_sae_fits(sae, model)
    from sae_lens_maira.hooked.dictionary import measure_firing

    studies = list(range(min(n_studies, len(model.studies))))
    firing = measure_firing(model, sae, studies, percentile)
    return Dictionary(sae, firing.strengths), firing


def plan(
    sae_path: Path, model: HookedVisionLanguageModel, config: SteerConfig, out: Path, *, overwrite: bool = False
) -> Experiment:
    """An experiment that is ready to run: nothing is written yet save its key.

    Raises:
        SteeringError: the studies are no phantom's, or too few; a concept is unknown.
        ResultError: the folder holds another experiment.
    """
    source: StudySource = open_source(config.studies)
    if source.description["kind"] != "phantom":
        raise SteeringError(
            f"Studies of kind {source.description['kind']} cannot be steered by a grid yet, because nobody reads their "
            "reports; use studies.kind phantom, or model.steered(...) and your own labels."
        )
    dictionary, firing = load_dictionary(sae_path, model, config.n_strength, config.strength_percentile)
    units = Units(out, key(sae_path, model, config), overwrite=overwrite)
    return Experiment(model, dictionary, firing, source, PhantomWorld(), config, units)


def key(sae_path: Path, model: HookedVisionLanguageModel, config: SteerConfig) -> dict[str, Any]:
    """What determines an experiment's units."""
    settings = config.to_dict()
    settings.pop("max_rows")
    return {
        "units_version": UNITS_VERSION,
        "generator_version": GENERATOR_VERSION,
        "sae": hash_file(sae_path / WEIGHTS),
        "model": fingerprint_weights(model.vlm.module),
        "strengths_on": model.studies.fingerprint,
        "settings": settings,
    }


def run(experiment: Experiment, sae_path: Path, out: Path) -> Result:
    """Run what is missing, and write the result.

    Raises:
        Interrupted: Ctrl-C; finished studies are kept.
    """
    found, chosen = experiment.run()
    world, dictionary, config = experiment.world, experiment.dictionary, experiment.config
    stages = [found["test"], *([found["controls"]] if found["controls"][0] else [])]
    arms = pa.concat_tables([arm_table(*own, world, dictionary) for own in stages])
    removal = removal_table(*found["removal"], world) if "removal" in found else None
    tables = {
        "arms": arms,
        "curves": arm_table(*found["dose"], world, dictionary),
        "candidates": arm_table(*found["try"], world, dictionary),
        "slopes": slope_table(*found["dose"], world),
        "features": feature_table(arms, removal),
    }
    if removal is not None:
        tables["removal"] = removal
    if "prompt" in found:
        tables["prompt"] = arm_table(*found["prompt"], world, dictionary)
    files = [plot_curves(tables["curves"], chosen, out), plot_rises(arms, out)]
    model = experiment.engine.model
    summary = {
        "sae": fingerprint_weights(dictionary.sae),
        "settings": config.to_dict(),
        "hook_name": experiment.hook,
        "unit_of_doses": f"percentile {config.strength_percentile:g} of a latent's positive activations",
        "made_from": key(sae_path, model, config),
        "splits": {name: len(indices) for name, indices in experiment.parts.items()},
        "figures": figures(arms, removal) | figures_of_prompt(tables.get("prompt")),
    }
    return write_result(out, "steering", tables, summary, columns=COLUMNS, files=files)


def figures_of_prompt(table: Any) -> dict[str, Any]:
    """The main figures of the control that asks for the concept in words."""
    return {} if table is None else figures(table, None)
