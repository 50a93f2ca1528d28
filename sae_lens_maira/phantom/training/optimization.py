"""The two training stages as loops over batches, with a state from which a later run resumes.

Several processes of one thread each share a step: on few cores this is faster than one process with several threads,
and other work on the machine hardly slows it down. Each process takes its part of the batch; gradients are averaged.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from sae_lens_maira.errors import ConfigError
from sae_lens_maira.files import replacing
from sae_lens_maira.maira2.processing import Maira2Processor
from sae_lens_maira.phantom.training.config import PhantomTrainingConfig
from sae_lens_maira.phantom.training.pool import Pool
from sae_lens_maira.phantom.training.report_batches import ReportBatches
from sae_lens_maira.phantom.training.report_training import ReportHeads, report_loss
from sae_lens_maira.phantom.training.vision_training import (
    VisionHeads,
    pool_features,
    presence_f1,
    vision_batch,
    vision_loss,
)


@dataclass(frozen=True)
class Process:
    """This process's rank and the world size."""

    rank: int = 0
    world_size: int = 1

    def average_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Replace the gradients of all processes by their mean, in one exchange."""
        if self.world_size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:  # this part of the batch did not use the head; another part may have
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        means = (flat / self.world_size).split([gradient.numel() for gradient in gradients])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view_as(gradient))


class TrainingState:
    """A run's progress: the model, the heads, and the steps done in each stage; written and read as a whole."""

    def __init__(self, config: PhantomTrainingConfig, model: Any) -> None:
        self.config, self.model = config, model
        sizes = model.config
        self.vision_heads = VisionHeads(sizes.vision_config.hidden_size)
        self.report_heads = ReportHeads(sizes.text_config.hidden_size)
        self.done: dict[str, int] = {"vision": 0, "report": 0}
        self.seconds = 0.0
        self.optimizer_states: list[dict[str, Any]] | None = None

    def save(self, path: Path, optimizer: Optimizer) -> None:
        """Write everything to ``path``, which is replaced as a whole."""
        state = {
            "config": asdict(self.config),
            "model": self.model.state_dict(),
            "vision_heads": self.vision_heads.state_dict(),
            "report_heads": self.report_heads.state_dict(),
            "done": self.done,
            "seconds": self.seconds,
            "optimizers": optimizer.state_dicts(),
        }
        with replacing(path) as file:
            torch.save(state, file)

    def load(self, path: Path) -> None:
        """Resume from ``path``.

        Raises:
            ConfigError: it was written under another configuration.
        """
        state = torch.load(path, weights_only=True)
        if state["config"] != asdict(self.config):
            raise ConfigError(f"'{path}' belongs to another configuration ({state['config']}); choose another --out.")
        self.model.load_state_dict(state["model"])
        self.vision_heads.load_state_dict(state["vision_heads"])
        self.report_heads.load_state_dict(state["report_heads"])
        self.done, self.seconds = state["done"], state["seconds"]
        stage_has_ended = self.done["vision"] == self.config.vision_steps and self.done["report"] == 0
        self.optimizer_states = None if stage_has_ended else state["optimizers"]


class Optimizer:
    """AdamW and Muon under one cycle of the learning rate, on averaged and clipped gradients.

    Muon takes the weight matrices of ``muon_parts``. AdamW takes everything else and does not decay vectors.
    """

    def __init__(
        self,
        modules: list[nn.Module],
        state: TrainingState,
        process: Process,
        peak_lr: float,
        n_steps: int,
        *,
        muon_parts: Sequence[nn.Module] = (),
        muon_lr: float = 0.0,
    ) -> None:
        self.parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        self.process, self.n_steps = process, n_steps
        matrices = [m.weight for part in muon_parts for m in part.modules() if isinstance(m, nn.Linear)]
        by_muon = {id(p) for p in matrices}
        rest = [p for p in self.parameters if id(p) not in by_muon]
        decay = state.config.weight_decay
        groups = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.stepped: list[tuple[torch.optim.Optimizer, float]] = [
            (torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True), peak_lr)
        ]
        if matrices:
            self.stepped.append((torch.optim.Muon(matrices, weight_decay=decay), muon_lr))
        if state.optimizer_states is not None:
            for (optimizer, _), saved in zip(self.stepped, state.optimizer_states, strict=True):
                optimizer.load_state_dict(saved)
            state.optimizer_states = None

    def step(self, loss: torch.Tensor, step: int) -> None:
        for optimizer, peak in self.stepped:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = one_cycle(step, self.n_steps, peak)
        loss.backward()
        self.process.average_gradients(self.parameters)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer, _ in self.stepped:
            optimizer.step()

    def state_dicts(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer, _ in self.stepped]


def one_cycle(step: int, n_steps: int, peak: float) -> float:
    """The learning rate of a step: a linear rise over the first 4 % of steps, then half a cosine to 1 % of the peak."""
    rise = max(1, round(0.04 * n_steps))
    if step < rise:
        return peak * (step + 1) / rise
    progress = (step - rise) / max(1, n_steps - rise)
    return peak * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress)))


def train_vision(state: TrainingState, pool: Pool, process: Process, path: Path) -> None:
    """Stage 1: train the tower and its heads."""
    config, tower = state.config, state.model.model.vision_tower
    optimizer = Optimizer([tower, state.vision_heads], state, process, config.vision_lr, config.vision_steps)
    check_rows = np.flatnonzero(~pool.is_lateral)[-400:]
    bar = _bar("vision", state.done["vision"], config.vision_steps, process)
    for step in bar:
        began = time.perf_counter()
        values, rows = vision_batch(
            pool, (config.seed, 1, step, process.rank), config.vision_batch // process.world_size
        )
        loss = vision_loss(tower(values).feature_maps[-1][:, 1:], state.vision_heads, pool, rows)
        optimizer.step(loss, step)
        state.done["vision"] = step + 1
        state.seconds += time.perf_counter() - began
        if process.rank == 0 and _is_save_step(step, config.vision_steps, config):
            state.save(path, optimizer)
            bar.write(f"vision step {step + 1}: F1 {presence_f1(tower, state.vision_heads, pool, check_rows):.3f}")


def train_reports(state: TrainingState, pool: Pool, processor: Maira2Processor, process: Process, path: Path) -> None:
    """Stage 2: train the projector, the language model and its head on the features of the frozen tower."""
    config, model = state.config, state.model
    model.model.vision_tower.requires_grad_(False)
    features = pool_features(model.model.vision_tower, pool)
    parts = [model.model.multi_modal_projector, model.model.language_model, model.lm_head, state.report_heads]
    muon_parts = [model.model.multi_modal_projector, model.model.language_model.layers]
    optimizer = Optimizer(
        parts, state, process, config.report_lr, config.report_steps, muon_parts=muon_parts, muon_lr=config.muon_lr
    )
    batches = ReportBatches(pool, processor, config.seed, config.report_batch, config.answers_per_study)
    smooth, weight = np.zeros(2), 0.0
    bar = _bar("report", state.done["report"], config.report_steps, process)
    for step in bar:
        began = time.perf_counter()
        language, auxiliary = report_loss(
            model, state.report_heads, features, batches.batch(step, process.rank, process.world_size)
        )
        optimizer.step(language + config.auxiliary_weight * auxiliary, step)
        state.done["report"] = step + 1
        state.seconds += time.perf_counter() - began
        smooth, weight = 0.98 * smooth + 0.02 * np.array([language.item(), auxiliary.item()]), 0.98 * weight + 0.02
        if process.rank == 0 and _is_save_step(step, config.report_steps, config):
            state.save(path, optimizer)
            shown = smooth / weight
            bar.write(f"report step {step + 1}: loss {shown[0]:.3f}, auxiliary {shown[1]:.3f}")


def _bar(stage: str, done: int, n_steps: int, process: Process) -> tqdm:
    return tqdm(
        range(done, n_steps), desc=stage, initial=done, total=n_steps, disable=process.rank > 0, mininterval=2.0
    )


def _is_save_step(step: int, n_steps: int, config: PhantomTrainingConfig) -> bool:
    return (step + 1) % config.save_every == 0 or step + 1 == n_steps
