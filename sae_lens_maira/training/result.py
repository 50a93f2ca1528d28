"""A run's folder: checks before a run starts, and the files that a finished run leaves."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
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

from sae_lens_maira.errors import ConfigError, printable
from sae_lens_maira.files import MARKER, exclusive, from_json, mark, read_mark, write_text
from sae_lens_maira.setting_values import read_yaml
from sae_lens_maira.training.checkpoints import has_checkpoints, hash_config, newest_whole, remove_checkpoints
from sae_lens_maira.training.config import TrainConfig
from sae_lens_maira.training.evaluate import SaeScores, evaluate_sae

if TYPE_CHECKING:
    from datasets import Dataset

    from sae_lens_maira.hooked import HookedVisionLanguageModel

logger = logging.getLogger(__name__)

KIND = "run"
CONFIG_NAME, SCORES_NAME = "config.yaml", "scores.json"
_CHECKPOINTS, _LOCK_NAME = "checkpoints", ".training.lock"
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
    """Refuse to mix runs, and to replace what no run of this package wrote.

    Raises:
        ConfigError: the folder holds another run, or this run and neither ``resume`` nor ``overwrite`` is given.
    """
    written = path / CONFIG_NAME
    _check_own(config, path)
    if written.is_file() and not overwrite:
        earlier = TrainConfig.from_dict(read_yaml(written))
        ours, theirs = config.identity(), earlier.identity()
        differs = sorted(name for name in ours if ours[name] != theirs[name])
        if differs:
            raise ConfigError(f"'{path}' holds a run with another {', '.join(differs)}; choose another folder.")
        if not resume and is_finished(path):
            raise ConfigError(f"'{path}' holds a finished run already; choose another folder, or pass --overwrite.")
        if not resume and has_checkpoints(path / _CHECKPOINTS):
            raise ConfigError(f"'{path}' holds an unfinished run; pass --resume to go on, or --overwrite.")


@contextmanager
def own_folder(config: TrainConfig, path: Path, *, resume: bool, overwrite: bool) -> Iterator[Path | None]:
    """Hold a folder for one run alone, once everything fits together; of a run to overwrite nothing is left before.

    Yields:
        the newest whole checkpoint to go on from.

    Raises:
        ConfigError: as :func:`check_folder`; or another process trains there.
    """
    with hold_folder(path):
        check_folder(config, path, resume=resume, overwrite=overwrite)
        if overwrite:
            remove_run(path)
        checkpoint = newest_whole(path / _CHECKPOINTS, hash_config(config)) if resume else None
        mark(path, KIND, saes=sorted(config.saes))
        _write_config(config, path)
        if checkpoint is not None:
            logger.info("Resuming from '%s'.", checkpoint)
        yield checkpoint


@contextmanager
def hold_folder(path: Path) -> Iterator[None]:
    """Keep other trainings out of a folder.

    Raises:
        ConfigError: one runs there.
    """
    with exclusive(path / _LOCK_NAME, wait=False) as is_free:
        if not is_free:
            raise ConfigError(f"Another training runs in '{path}'; wait for its end, or choose another folder.")
        yield


def remove_run(path: Path) -> None:
    """Remove what a run leaves in its folder, checkpoints first and the mark last, and nothing else that lies there."""
    found = read_mark(path, KIND)
    if found is None:
        return
    remove_checkpoints(path / _CHECKPOINTS)
    names = [name for name in found.get("saes", []) if Path(str(name)).name == name]
    for folder in (*(path / name for name in names), path):
        for name in _FILES_OF_A_RUN:
            (folder / name).unlink(missing_ok=True)
        if folder != path and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    (path / MARKER).unlink()


def _check_own(config: TrainConfig, path: Path) -> None:
    """Refuse files of a run's names, in the folder or in those of its SAEs, that no run wrote."""
    found = read_mark(path, KIND)
    names = (*_FILES_OF_A_RUN, _CHECKPOINTS)
    ours = set() if found is None else {path / name for name in ("", *found.get("saes", []))}
    for folder in {path, *(path / name for name in config.saes)} - ours:
        foreign = next((folder / name for name in names if os.path.lexists(folder / name)), None)
        if foreign is not None:
            raise ConfigError(f"'{foreign}' was not written by a training run in '{path}'; choose another folder.")


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
    """Read the result in a folder.

    Raises:
        ConfigError: its scores are damaged.
    """
    try:
        scores = SaeScores(**from_json((path / SCORES_NAME).read_bytes()))
    except (ValueError, TypeError, OSError) as error:
        raise ConfigError(
            f"'{path / SCORES_NAME}' cannot be read ({printable(error)}); remove the scores.json of the run, and pass "
            "--resume to score it again."
        ) from error
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
