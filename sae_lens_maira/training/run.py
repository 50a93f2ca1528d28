"""From a configuration to a trained SAE: SAE-Lens's runner on a hooked model."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sae_lens import SAE

from sae_lens_maira.data.study import Study
from sae_lens_maira.errors import ConfigError
from sae_lens_maira.hooked.identity import METADATA_KEY, describe_model
from sae_lens_maira.hooked.loading import load_model
from sae_lens_maira.sources import open_source
from sae_lens_maira.training.checkpoints import hash_config
from sae_lens_maira.training.config import TrainConfig
from sae_lens_maira.training.data import training_data
from sae_lens_maira.training.mirrored import with_sae_lens_types
from sae_lens_maira.training.result import (
    TrainingResult,
    check_folder,
    finish_result,
    is_finished,
    own_folder,
    read_result,
    score,
)
from sae_lens_maira.training.runner_config import to_runner_config
from sae_lens_maira.training.runners import ResumableRunner

logger = logging.getLogger(__name__)


def train(
    config: TrainConfig,
    path: Path,
    studies: Sequence[Study] | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> TrainingResult:
    """Train one SAE; :func:`~sae_lens_maira.training.multi.train_several` trains several in one run.

    Args:
        config: what to train.
        path: folder for the result and the checkpoints.
        studies: studies to use instead of ``config.source``.
        resume: continue from the newest complete checkpoint in ``path``, or from the start if there is none; a
            finished run is returned as it is.
        overwrite: remove an earlier run from ``path`` first, with its checkpoints.

    Raises:
        ConfigError: a setting does not fit the model or SAE-Lens, or ``path`` holds something else.
        Interrupted: Ctrl-C was pressed; a checkpoint was saved.
    """
    if config.saes:
        raise ConfigError("The configuration names several SAEs in saes; call train_several, or leave saes out.")
    config = with_sae_lens_types(config)
    check_folder(config, path, resume=resume, overwrite=overwrite)
    if resume and not overwrite and is_finished(path):
        logger.info("'%s' is finished already.", path)
        return read_result(path, config.model.find_device())
    model = load_model(config.model, open_source(config.source) if studies is None else studies, config.policy)
    runner_config = to_runner_config(config, model, path)
    data = training_data(config, model, config.hook_name, runner_config)
    with own_folder(config, path, resume=resume, overwrite=overwrite) as checkpoint, without_misleading_warnings():
        runner_config.resume_from_checkpoint = None if checkpoint is None else str(checkpoint)
        runner = ResumableRunner(runner_config, model, data, hash_config(config))
        setattr(runner.sae.cfg.metadata, METADATA_KEY, describe_model(model))
        runner.run()
        sae = SAE.load_from_disk(path, device=runner_config.device)
        scores = score(sae, model, data.held_out, runner_config, config.n_eval_batches)
        logger.info("Held-out studies: %s", scores.describe())
        return finish_result(config, path, sae, scores)


@contextmanager
def without_misleading_warnings() -> Iterator[None]:
    """Silence warnings of SAE-Lens that do not apply to rows, or to a model and dataset that are passed directly."""
    sae_lens_logger = logging.getLogger("sae_lens")
    level = sae_lens_logger.level
    with warnings.catch_warnings():
        for message in (
            "The training dataset contains fewer samples",
            "To copy construct",
        ):
            warnings.filterwarnings("ignore", message=message, category=UserWarning)
        sae_lens_logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            sae_lens_logger.setLevel(level)
