"""What SAE-Lens's runners lack to be stopped at any moment and to reach the same weights afterwards.

1. They read from a :class:`~sae_lens_maira.training.store.ResumableActivationsStore`, and seal their checkpoints.
2. On Ctrl-C, SAE-Lens's runners raise immediately, possibly in the middle of an optimizer step. These stop between two
   steps and save a complete checkpoint.
3. SAE-Lens saves periodic checkpoints before it counts the step, and a resumed run repeats those that were saved
   already. :func:`set_counts_right` corrects both.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sae_lens import LanguageModelSAETrainingRunner
from sae_lens.multi_sae_training_runner import MultiSAETrainingRunner

from sae_lens_maira.activations.provider import CachedActivations, CachedMultiHookActivations
from sae_lens_maira.errors import Interrupted
from sae_lens_maira.interruption import noticed_interruptions
from sae_lens_maira.training.checkpoints import seal
from sae_lens_maira.training.skipped import TooManySkipped
from sae_lens_maira.training.store import ResumableActivationsStore

if TYPE_CHECKING:
    from sae_lens_maira.hooked import HookedVisionLanguageModel
    from sae_lens_maira.training.data import TrainingData

_ANSWER = "Stopping after this step; press Ctrl-C again to stop at once without saving."


class _Resumable:
    """What both runners have: the store, and checkpoints that are sealed.

    Args:
        cfg: SAE-Lens's configuration.
        model: the model to read; with a cache, only SAE-Lens's evaluations run it.
        data: what the run trains on.
        config_hash: hash of the run's configuration, which its checkpoints carry.
    """

    activations_store: Any
    evaluator: Any

    def __init__(self, cfg: Any, model: HookedVisionLanguageModel, data: TrainingData, config_hash: str = "") -> None:
        self._config_hash = config_hash
        torch.manual_seed(cfg.seed)  # SAE-Lens does not seed the initialization of SAEs
        runner: Any = super()
        runner.__init__(cfg, override_dataset=data.rows, override_model=model)
        self.store = ResumableActivationsStore(self.activations_store, data, cfg.seed)
        self.activations_store = self.store
        self.evaluator.activations_store = self.store

    def _seal(self, checkpoint_path: Path | None) -> None:
        if checkpoint_path is not None:
            seal(checkpoint_path, self._config_hash)


class ResumableRunner(_Resumable, LanguageModelSAETrainingRunner):
    """SAE-Lens's runner of one SAE; arguments as for :class:`_Resumable`."""

    def save_checkpoint(self, checkpoint_path: Path | None) -> None:
        super().save_checkpoint(checkpoint_path)
        self._seal(checkpoint_path)

    def run_trainer_with_interruption_handling(self, trainer: Any) -> Any:
        set_counts_right(trainer, self.cfg.train_batch_size_tokens)
        if isinstance(self.store.provider, CachedActivations) and _needs_scale(trainer):
            trainer.activation_scaler.scaling_factor = self.store.provider.scaling_factor
        return fit_or_save(trainer, self.store)


class ResumableMultiRunner(_Resumable, MultiSAETrainingRunner):
    """SAE-Lens's runner of several SAEs; arguments as for :class:`_Resumable`."""

    def _save_runner_checkpoint_files(self, checkpoint_path: Path | None) -> None:
        super()._save_runner_checkpoint_files(checkpoint_path)
        self._seal(checkpoint_path)

    def _run_with_interruption_handling(self, trainer: Any) -> Any:
        for own in (trainer, *trainer.trainers.values()):
            set_counts_right(own, self.cfg.train_batch_size_tokens)
        if isinstance(self.store.provider, CachedMultiHookActivations):
            for name, own in trainer.trainers.items():
                if _needs_scale(own):
                    factors = self.store.provider.scaling_factors
                    own.activation_scaler.scaling_factor = factors[trainer.hook_names[name]]
        return fit_or_save(trainer, self.store)


def _needs_scale(trainer: Any) -> bool:
    """Whether SAE-Lens would estimate a scale, which uses up batches of a cache that knows it exactly."""
    is_normalized = trainer.sae.cfg.normalize_activations == "expected_average_only_in"
    return is_normalized and trainer.activation_scaler.scaling_factor is None


def set_counts_right(trainer: Any, batch_size: int) -> None:
    """Set the counts that SAE-Lens does not restore: finished steps, and checkpoints that are still to be saved."""
    trainer.n_training_steps = trainer.n_training_samples // batch_size
    trainer.checkpoint_thresholds = [
        threshold for threshold in trainer.checkpoint_thresholds if threshold > trainer.n_training_samples
    ]


def fit_or_save(trainer: Any, store: ResumableActivationsStore) -> Any:
    """Train to the end, or until Ctrl-C or too many unusable studies, then save a complete checkpoint.

    Raises:
        Interrupted: Ctrl-C was pressed.
        TooManySkipped: too many studies have images that cannot be used.
    """
    trainer._update_pbar = partial(show_progress, trainer)
    with noticed_interruptions(_ANSWER) as request:
        store.stop_request = request
        try:
            return trainer.fit()
        except (Interrupted, TooManySkipped) as error:
            if trainer.n_training_samples:
                trainer.save_checkpoint(checkpoint_name=str(trainer.n_training_samples))
            elif isinstance(error, Interrupted):
                raise Interrupted("interrupted before the first step; the same command starts again") from None
            raise


def show_progress(trainer: Any, step: Any, bar: Any, update_interval: int = 100) -> None:
    """Move the bar after each step, and show each SAE's loss behind it; SAE-Lens's own text hides the bar."""
    bar.update(trainer.n_training_samples - bar.n)
    if trainer.n_training_steps % update_interval == 0:
        steps = step if isinstance(step, Mapping) else {"loss": step}
        bar.set_postfix({name: f"{own.loss.item():.4g}" for name, own in steps.items()}, refresh=False)
