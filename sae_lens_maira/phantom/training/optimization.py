"""The two training stages as loops: batches in, optimizer steps, a state that a later run goes on from.

Several processes of one thread each share a step: on few cores that is faster than one process of several threads, and
hardly slowed by whatever else the machine does. Each process takes its share of the batch, and gradients are averaged.
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

from sae_lens_maira.maira2.processing import Maira2Processor
from sae_lens_maira.phantom.training.pool import Pool
from sae_lens_maira.phantom.training.report_training import ReportBatches, ReportHeads, report_loss
from sae_lens_maira.phantom.training.train_config import TrainConfig
from sae_lens_maira.phantom.training.vision_training import (
    VisionHeads,
    pool_features,
    presence_f1,
    vision_batch,
    vision_loss,
)


@dataclass(frozen=True)
class Share:
    """Which of the processes this is."""

    rank: int = 0
    of: int = 1

    def average_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Make every process's gradients their mean, in one exchange."""
        if self.of == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:  # a head that this share had no use for; another share may have had
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, mean in zip(gradients, (flat / self.of).split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))


class State:
    """Where a run stands: the model, the heads, and the steps done in each stage; written and read as a whole."""

    def __init__(self, config: TrainConfig, model: Any) -> None:
        self.config, self.model = config, model
        sizes = model.config
        self.vision_heads = VisionHeads(sizes.vision_config.hidden_size)
        self.report_heads = ReportHeads(sizes.text_config.hidden_size)
        self.done: dict[str, int] = {"vision": 0, "report": 0}
        self.seconds = 0.0
        self.optimizer_states: list[dict[str, Any]] | None = None

    def save(self, path: Path, optimizer: Optimizer) -> None:
        """Write everything to `path` in one move: a state is there whole or not at all."""
        state = {
            "config": asdict(self.config),
            "model": self.model.state_dict(),
            "vision_heads": self.vision_heads.state_dict(),
            "report_heads": self.report_heads.state_dict(),
            "done": self.done,
            "seconds": self.seconds,
            "optimizers": optimizer.state_dicts(),
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Go on from `path`.

        Raises:
            ValueError: it was written under another configuration.
        """
        state = torch.load(path, weights_only=True)
        if state["config"] != asdict(self.config):
            raise ValueError(f"{path} belongs to another configuration ({state['config']}); choose another --out")
        self.model.load_state_dict(state["model"])
        self.vision_heads.load_state_dict(state["vision_heads"])
        self.report_heads.load_state_dict(state["report_heads"])
        self.done, self.seconds = state["done"], state["seconds"]
        stage_has_ended = self.done["vision"] == self.config.vision_steps and self.done["report"] == 0
        self.optimizer_states = None if stage_has_ended else state["optimizers"]


class Optimizer:
    """One cycle of the learning rate over gradients that are averaged over processes and clipped.

    AdamW, without decay on vectors; and Muon for `muon_parts`' weight matrices, if there are any.
    """

    def __init__(
        self,
        modules: list[nn.Module],
        state: State,
        share: Share,
        peak_lr: float,
        n_steps: int,
        *,
        muon_parts: Sequence[nn.Module] = (),
        muon_lr: float = 0.0,
    ) -> None:
        self.parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        self.share, self.n_steps = share, n_steps
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
        self.share.average_gradients(self.parameters)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer, _ in self.stepped:
            optimizer.step()

    def state_dicts(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer, _ in self.stepped]


def one_cycle(step: int, n_steps: int, peak: float) -> float:
    """The learning rate: a linear rise over the first 4 %, then half a cosine down to a hundredth."""
    rise = max(1, round(0.04 * n_steps))
    if step < rise:
        return peak * (step + 1) / rise
    progress = (step - rise) / max(1, n_steps - rise)
    return peak * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress)))


def train_vision(state: State, pool: Pool, share: Share, path: Path) -> None:
    """Stage 1: the tower and its heads."""
    config, tower = state.config, state.model.model.vision_tower
    optimizer = Optimizer([tower, state.vision_heads], state, share, config.vision_lr, config.vision_steps)
    check_rows = np.flatnonzero(~pool.is_lateral)[-400:]
    bar = _bar("vision", state.done["vision"], config.vision_steps, share)
    for step in bar:
        began = time.perf_counter()
        values, rows = vision_batch(pool, (config.seed, 1, step, share.rank), config.vision_batch // share.of)
        loss = vision_loss(tower(values).feature_maps[-1][:, 1:], state.vision_heads, pool, rows)
        optimizer.step(loss, step)
        state.done["vision"] = step + 1
        state.seconds += time.perf_counter() - began
        if share.rank == 0 and _is_save_step(step, config.vision_steps, config):
            state.save(path, optimizer)
            bar.write(f"vision step {step + 1}: F1 {presence_f1(tower, state.vision_heads, pool, check_rows):.3f}")


def train_reports(state: State, pool: Pool, processor: Maira2Processor, share: Share, path: Path) -> None:
    """Stage 2: the projector, the language model and its head, on the features of the frozen tower."""
    config, model = state.config, state.model
    model.model.vision_tower.requires_grad_(False)
    features = pool_features(model.model.vision_tower, pool)
    parts = [model.model.multi_modal_projector, model.model.language_model, model.lm_head, state.report_heads]
    muon_parts = [model.model.multi_modal_projector, model.model.language_model.layers]
    optimizer = Optimizer(
        parts, state, share, config.report_lr, config.report_steps, muon_parts=muon_parts, muon_lr=config.muon_lr
    )
    batches = ReportBatches(pool, processor, config.seed, config.report_batch, config.answers_per_study)
    smooth, weight = np.zeros(2), 0.0
    bar = _bar("report", state.done["report"], config.report_steps, share)
    for step in bar:
        began = time.perf_counter()
        language, auxiliary = report_loss(
            model, state.report_heads, features, batches.batch(step, share.rank, share.of)
        )
        optimizer.step(language + config.auxiliary_weight * auxiliary, step)
        state.done["report"] = step + 1
        state.seconds += time.perf_counter() - began
        smooth, weight = 0.98 * smooth + 0.02 * np.array([language.item(), auxiliary.item()]), 0.98 * weight + 0.02
        if share.rank == 0 and _is_save_step(step, config.report_steps, config):
            state.save(path, optimizer)
            shown = smooth / weight
            bar.write(f"report step {step + 1}: loss {shown[0]:.3f}, auxiliary {shown[1]:.3f}")


def _bar(stage: str, done: int, n_steps: int, share: Share) -> tqdm:
    return tqdm(range(done, n_steps), desc=stage, initial=done, total=n_steps, disable=share.rank > 0, mininterval=2.0)


def _is_save_step(step: int, n_steps: int, config: TrainConfig) -> bool:
    return (step + 1) % config.save_every == 0 or step + 1 == n_steps
