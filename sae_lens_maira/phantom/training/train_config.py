"""What the phantom's training does: every option with its default, its unit and its meaning."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, fields
from typing import Any


def _option(default: Any, doc: str) -> Any:
    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True)
class TrainConfig:
    """The defaults made the shipped weights."""

    seed: int = _option(0, "decides the pool, the initial weights and every batch")
    n_studies: int = _option(16_000, "studies in the training pool")
    vision_steps: int = _option(5_000, "steps of the vision tower")
    vision_batch: int = _option(32, "images a step, over all processes")
    vision_lr: float = _option(1e-3, "peak learning rate of the vision tower")
    report_steps: int = _option(2_800, "steps of the projector and the language model")
    report_batch: int = _option(20, "studies a step, over all processes")
    answers_per_study: int = _option(2, "wordings of a study's report that one step learns from")
    report_lr: float = _option(3e-3, "peak learning rate of embeddings, norms and heads in that stage (AdamW)")
    muon_lr: float = _option(0.02, "peak learning rate of the projector's and the layers' matrices (Muon)")
    auxiliary_weight: float = _option(1.0, "weight of the auxiliary loss beside the language model's")
    weight_decay: float = _option(0.03, "of matrices")
    save_every: int = _option(250, "steps between two states that a later run can go on from")
    n_processes: int = _option(2, "processes of one thread each that share a step; another number, another result")
    n_evaluated: int = _option(500, "held-out studies that the card's scores are taken on; 0 skips scoring")

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            lowest = 0 if option.name in ("seed", "auxiliary_weight", "weight_decay", "n_evaluated") else 1e-12
            if value < lowest:
                raise ValueError(f"{option.name} is {value}; it must be {'at least 0' if lowest == 0 else 'positive'}")
        if min(self.vision_batch, self.report_batch) < self.n_processes:
            raise ValueError(f"a batch is smaller than the number of processes ({self.n_processes})")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add one command line option a field."""
    for option in fields(TrainConfig):
        name, kind = f"--{option.name.replace('_', '-')}", type(option.default)
        parser.add_argument(name, type=kind, default=option.default, help=option.metadata["doc"])
