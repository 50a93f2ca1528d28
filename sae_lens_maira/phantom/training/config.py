"""The options of the phantom's training: every option with its default, its unit and its meaning."""

from __future__ import annotations

from dataclasses import dataclass, fields

from sae_lens_maira.errors import ConfigError
from sae_lens_maira.settings import Settings

_MAY_BE_ZERO = ("seed", "auxiliary_weight", "weight_decay", "n_evaluated")


@dataclass(frozen=True)
class PhantomTrainingConfig(Settings):
    """The defaults made the shipped weights.

    Args:
        seed: decides the pool, the initial weights and every batch.
        n_studies: studies in the training pool.
        vision_steps: steps of the vision tower.
        vision_batch: images per step, over all processes.
        vision_lr: peak learning rate of the vision tower.
        report_steps: steps of the projector and the language model.
        report_batch: studies per step, over all processes.
        answers_per_study: wordings of a study's report that one step learns from.
        report_lr: peak learning rate of embeddings, norms and heads in that stage (AdamW).
        muon_lr: peak learning rate of the projector's and the layers' matrices (Muon).
        auxiliary_weight: weight of the auxiliary loss relative to the language model's.
        weight_decay: weight decay of matrices.
        save_every: steps between two states from which a later run can resume.
        n_processes: processes of one thread each that share a step; the result depends on it.
        n_evaluated: held-out studies for the scores on the model card; 0 skips scoring.

    Raises:
        ConfigError: an option is out of range.
    """

    seed: int = 0
    n_studies: int = 16_000
    vision_steps: int = 5_000
    vision_batch: int = 32
    vision_lr: float = 1e-3
    report_steps: int = 2_800
    report_batch: int = 20
    answers_per_study: int = 2
    report_lr: float = 3e-3
    muon_lr: float = 0.02
    auxiliary_weight: float = 1.0
    weight_decay: float = 0.03
    save_every: int = 250
    n_processes: int = 2
    n_evaluated: int = 500

    def check(self) -> None:
        for option in fields(self):
            name, value = option.name, getattr(self, option.name)
            if value < 0 or (value == 0 and name not in _MAY_BE_ZERO):
                raise ConfigError(
                    f"{name} is {value}; it must be {'at least 0' if name in _MAY_BE_ZERO else 'positive'}."
                )
        if min(self.vision_batch, self.report_batch) < self.n_processes:
            raise ConfigError(
                f"A batch is smaller than the number of processes ({self.n_processes}); "
                "raise vision_batch and report_batch, or lower n_processes."
            )
