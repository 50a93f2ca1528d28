"""Several SAEs in one run: SAE-Lens's multi-SAE runner on one live model or one cache, resumable.

The SAEs see the same tokens in the same order, at one hook point or at several. ``max_norm_multiple`` leaves out a
token if its norm is far above the median at any of the hook points.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
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
    mark_finished,
    own_folder,
    read_result,
    score,
)
from sae_lens_maira.training.run import without_misleading_warnings
from sae_lens_maira.training.runner_config import single_configs, to_multi_runner_config
from sae_lens_maira.training.runners import ResumableMultiRunner

logger = logging.getLogger(__name__)


def train_several(
    config: TrainConfig,
    path: Path,
    studies: Sequence[Study] | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, TrainingResult]:
    """Train the SAEs that ``config.saes`` names, all on the same tokens.

    Args:
        config: what to train.
        path: folder of the run; checkpoints are kept here, and each SAE gets a subfolder with its name.
        studies: studies to use instead of ``config.source``.
        resume: continue from the newest complete checkpoint in ``path``, or from the start if there is none; a
            finished run is returned as it is.
        overwrite: remove an earlier run from ``path`` first, with its checkpoints.

    Raises:
        ConfigError: a setting does not fit the model or SAE-Lens, or ``path`` holds something else.
        Interrupted: Ctrl-C was pressed; a checkpoint was saved.
    """
    if not config.saes:
        raise ConfigError("saes is missing: the names of the SAEs to train, with the settings of each.")
    config = with_sae_lens_types(config)
    check_folder(config, path, resume=resume, overwrite=overwrite)
    if resume and not overwrite and is_finished(path):
        logger.info("'%s' is finished already.", path)
        return {name: read_result(path / name, config.model.find_device()) for name in config.saes}
    model = load_model(config.model, open_source(config.source) if studies is None else studies, config.policy)
    runner_config = to_multi_runner_config(config, model, path)
    data = training_data(config, model, list(dict.fromkeys(runner_config.hook_names_per_sae.values())), runner_config)
    with own_folder(config, path, resume=resume, overwrite=overwrite) as checkpoint, without_misleading_warnings():
        runner_config.resume_from_checkpoint = None if checkpoint is None else str(checkpoint)
        runner = ResumableMultiRunner(runner_config, model, data, hash_config(config))
        for sae in runner.saes.values():
            setattr(sae.cfg.metadata, METADATA_KEY, describe_model(model))
        runner.run()
        results: dict[str, TrainingResult] = {}
        for name, own in single_configs(config).items():
            sae = SAE.load_from_disk(path / name, device=runner_config.device)
            scores = score(sae, model, data.held_out, runner_config, config.n_eval_batches)
            results[name] = finish_result(own, path / name, sae, scores)
            logger.info("Held-out studies, %s: %s", name, scores.describe())
        mark_finished(path, {name: result.scores.to_dict() for name, result in results.items()})
    return results
