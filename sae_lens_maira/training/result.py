"""A run's folder: checks before a run starts, and the files that a finished run leaves."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from sae_lens import SAE
from sae_lens.constants import (
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
)

from sae_lens_maira.errors import ConfigError
from sae_lens_maira.files import write_text
from sae_lens_maira.setting_values import read_yaml
from sae_lens_maira.training.config import TrainConfig
from sae_lens_maira.training.evaluate import SaeScores, evaluate_sae
from sae_lens_maira.training.store import latest_checkpoint

if TYPE_CHECKING:
    from datasets import Dataset

    from sae_lens_maira.hooked import HookedVisionLanguageModel

CONFIG_NAME, SCORES_NAME = "config.yaml", "scores.json"
_FILES_OF_A_RUN = (
    SCORES_NAME,
    SAE_WEIGHTS_FILENAME,
    SAE_CFG_FILENAME,
    SPARSITY_FILENAME,
    RUNNER_CFG_FILENAME,
    CONFIG_NAME,
)


@dataclass(frozen=True)
class TrainingResult:
    """What a run leaves behind.

    Args:
        sae: the inference SAE, as SAE-Lens loads it from ``path``.
        path: SAE-Lens's folder, with ``config.yaml`` and ``scores.json`` beside its own files.
        scores: scores on held-out studies.
    """

    sae: SAE[Any]
    path: Path
    scores: SaeScores


def check_folder(config: TrainConfig, path: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse to mix runs.

    Raises:
        ConfigError: the folder holds another run, or this run and neither ``resume`` nor ``overwrite`` is given.
    """
    written = path / CONFIG_NAME
    if written.is_file() and not overwrite:
        earlier = TrainConfig.from_dict(read_yaml(written))
        ours, theirs = config.to_dict(), earlier.to_dict()
        differs = sorted(name for name in ours if ours[name] != theirs[name])
        if differs:
            raise ConfigError(f"'{path}' holds a run with another {', '.join(differs)}; choose another folder.")
        if not resume and is_finished(path):
            raise ConfigError(f"'{path}' holds a finished run already; choose another folder, or pass --overwrite.")
        if not resume and latest_checkpoint(path / "checkpoints") is not None:
            raise ConfigError(f"'{path}' holds an unfinished run; pass --resume to go on, or --overwrite.")


def start_folder(config: TrainConfig, path: Path, *, overwrite: bool) -> None:
    """Write the configuration, after removing an earlier run if ``overwrite`` is given."""
    if overwrite:
        remove_run(path)
    path.mkdir(parents=True, exist_ok=True)
    _write_config(config, path)


def remove_run(path: Path) -> None:
    """Remove a run's files from its folder, checkpoints first; other files stay."""
    if not (path / CONFIG_NAME).is_file():
        return
    names = yaml.safe_load((path / CONFIG_NAME).read_text(encoding="utf-8")).get("saes") or {}
    shutil.rmtree(path / "checkpoints", ignore_errors=True)
    for folder in (*(path / name for name in names), path):
        for name in _FILES_OF_A_RUN:
            (folder / name).unlink(missing_ok=True)
        if folder != path and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def is_finished(path: Path) -> bool:
    """Whether a folder holds a finished run."""
    return (path / SCORES_NAME).is_file()


def mark_finished(path: Path, scores: Any) -> None:
    """Write a run's scores; this file marks a run as finished."""
    write_text(path / SCORES_NAME, json.dumps(scores, indent=1))


def finish_result(config: TrainConfig, path: Path, sae: SAE[Any], scores: SaeScores) -> TrainingResult:
    """Write configuration and scores next to an SAE, and return the result."""
    _write_config(config, path)
    mark_finished(path, scores.to_dict())
    return TrainingResult(sae, path, scores)


def read_result(path: Path, device: str) -> TrainingResult:
    """Read the result in a folder."""
    scores = SaeScores(**json.loads((path / SCORES_NAME).read_text(encoding="utf-8")))
    return TrainingResult(SAE.load_from_disk(path, device=device), path, scores)


def score(sae: SAE[Any], model: HookedVisionLanguageModel, held_out: Dataset, runner: Any, n_batches: int) -> SaeScores:
    """Score an SAE on held-out rows.

    Args:
        sae: as SAE-Lens loads it.
        model: the model on whose activations the SAE was trained.
        held_out: held-out rows.
        runner: SAE-Lens's configuration of the run.
        n_batches: number of batches of rows.
    """
    excluded = runner.exclude_special_tokens
    return evaluate_sae(
        sae,
        model,
        held_out,
        n_batches=n_batches,
        batch_size=min(runner.store_batch_size_prompts, len(held_out)),
        exclude_special_tokens=excluded if isinstance(excluded, list) else [],
        seqpos_slice=runner.seqpos_slice,
    )


def _write_config(config: TrainConfig, path: Path) -> None:
    write_text(path / CONFIG_NAME, yaml.safe_dump(config.to_dict(), sort_keys=False))
