"""Make the phantom model: `python -m sae_lens_maira.phantom.train --out DIR`.

1. Draw a pool of studies (minutes, two processes).
2. Learn a tokenizer on their text.
3. Train the vision tower on labels (`vision_training`), then freeze it and compute its features once.
4. Train the projector and the language model on reports (`report_training`).
5. Write the checkpoint in half precision with its processor, score it on held-out studies, and write its card.

Everything is a function of the configuration and its seed. Interrupted, the same command goes on from its last state.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from sae_lens_maira.maira2.modeling import Maira2ForConditionalGeneration
from sae_lens_maira.maira2.processing import Maira2Processor
from sae_lens_maira.phantom import requests
from sae_lens_maira.phantom.architecture import make_config, make_processor
from sae_lens_maira.phantom.generate import studies
from sae_lens_maira.phantom.grammar import NORMAL_STATEMENTS, all_claims, sentences
from sae_lens_maira.phantom.pool import Pool, load_or_draw
from sae_lens_maira.phantom.prompting import findings_prompt
from sae_lens_maira.phantom.report_training import ReportBatches, ReportHeads, report_loss
from sae_lens_maira.phantom.tokenizer import train_tokenizer
from sae_lens_maira.phantom.vision_training import VisionHeads, pool_features, presence_f1, vision_batch, vision_loss


def _option(default: Any, doc: str) -> Any:
    from dataclasses import field

    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True)
class TrainConfig:
    """What the training does. The defaults made the shipped weights."""

    seed: int = _option(0, "decides the pool, the initial weights and every batch")
    n_studies: int = _option(16_000, "studies in the training pool")
    vision_steps: int = _option(3_600, "steps of the vision tower")
    vision_batch: int = _option(32, "images a step")
    vision_lr: float = _option(1e-3, "peak learning rate of the vision tower")
    report_steps: int = _option(4_400, "steps of the projector and the language model")
    report_batch: int = _option(16, "studies a step")
    report_lr: float = _option(1e-3, "peak learning rate of the projector and the language model")
    weight_decay: float = _option(0.03, "AdamW's, on matrices")
    save_every: int = _option(400, "steps between two states that a later run can go on from")
    n_threads: int = _option(2, "CPU threads of torch")
    n_evaluated: int = _option(500, "held-out studies that the card's scores are taken on; 0 skips scoring")


class State:
    """Where a run stands: the model, the heads, and which stage and step come next; written and read as a whole."""

    def __init__(self, config: TrainConfig, model: Any) -> None:
        self.config, self.model = config, model
        sizes = model.config
        self.vision_heads = VisionHeads(sizes.vision_config.hidden_size)
        self.report_heads = ReportHeads(sizes.text_config.hidden_size)
        self.done: dict[str, int] = {"vision": 0, "report": 0}
        self.seconds = 0.0
        self.optimizer_state: dict[str, Any] | None = None

    def save(self, path: Path, optimizer: torch.optim.Optimizer) -> None:
        """Write everything to `path` in one move: a state is there whole or not at all."""
        state = {
            "config": asdict(self.config),
            "model": self.model.state_dict(),
            "vision_heads": self.vision_heads.state_dict(),
            "report_heads": self.report_heads.state_dict(),
            "done": self.done,
            "seconds": self.seconds,
            "optimizer": optimizer.state_dict(),
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        if state["config"] != asdict(self.config):
            raise ValueError(f"{path} belongs to another configuration ({state['config']}); choose another --out")
        self.model.load_state_dict(state["model"])
        self.vision_heads.load_state_dict(state["vision_heads"])
        self.report_heads.load_state_dict(state["report_heads"])
        self.done, self.seconds, self.optimizer_state = state["done"], state["seconds"], state["optimizer"]


def corpus(seed: int, n_studies: int = 3_000) -> list[str]:
    """The text that the tokenizer learns on: prompts and reports of some studies, and every sentence and section once."""
    texts = [text for claim in all_claims() for text in sentences(claim)]
    texts += [text for statement in NORMAL_STATEMENTS for text in statement.wordings]
    for table in (requests.INDICATIONS, requests.TECHNIQUES, requests.COMPARISONS):
        texts += [text for wordings in table.values() for text in wordings]
    for k, study in enumerate(studies(n_studies, seed)):
        pieces = findings_prompt(study, grounded=k % 2 == 0, open_images=False).pieces()
        texts += ["".join(part.text for part in piece) for piece in pieces if isinstance(piece, tuple)]
        texts.append(study.findings or "")
    return [*texts, "A radiology assistant describes a phantom study. USER: ASSISTANT:" ]


def one_cycle(step: int, n_steps: int, peak: float) -> float:
    """The learning rate: a linear rise over the first 5 %, then half a cosine down to a hundredth."""
    rise = max(1, round(0.05 * n_steps))
    if step < rise:
        return peak * (step + 1) / rise
    progress = (step - rise) / max(1, n_steps - rise)
    return peak * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress)))


def make_optimizer(modules: list[nn.Module], config: TrainConfig) -> torch.optim.AdamW:
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    matrices = [p for p in parameters if p.ndim >= 2]
    others = [p for p in parameters if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)


def take_step(optimizer: torch.optim.Optimizer, loss: torch.Tensor, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()


def train_vision(state: State, pool: Pool, path: Path) -> None:
    """Stage 1: the tower and its heads."""
    config, tower = state.config, state.model.model.vision_tower
    optimizer = make_optimizer([tower, state.vision_heads], config)
    _restore(state, optimizer)
    check_rows = np.flatnonzero(~pool.is_lateral)[-500:]
    bar = tqdm(range(state.done["vision"], config.vision_steps), desc="vision", initial=state.done["vision"], total=config.vision_steps)
    for step in bar:
        began = time.perf_counter()
        values, rows = vision_batch(pool, config.seed, step, config.vision_batch)
        features = tower(values).feature_maps[-1][:, 1:]
        loss = vision_loss(features, state.vision_heads, pool, rows)
        take_step(optimizer, loss, one_cycle(step, config.vision_steps, config.vision_lr))
        state.done["vision"] = step + 1
        state.seconds += time.perf_counter() - began
        if step % 25 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
        if (step + 1) % config.save_every == 0 or step + 1 == config.vision_steps:
            state.save(path, optimizer)
            bar.write(f"vision step {step + 1}: presence F1 {presence_f1(tower, state.vision_heads, pool, check_rows):.3f}")


def train_reports(state: State, pool: Pool, processor: Maira2Processor, path: Path) -> None:
    """Stage 2: the projector, the language model and its head, on the features of the frozen tower."""
    config, model = state.config, state.model
    model.model.vision_tower.requires_grad_(False)
    features = pool_features(model.model.vision_tower, pool)
    parts = [model.model.multi_modal_projector, model.model.language_model, model.lm_head, state.report_heads]
    optimizer = make_optimizer(parts, config)
    _restore(state, optimizer)
    batches = ReportBatches(pool, processor, config.seed, config.report_batch, config.report_steps)
    steps = range(state.done["report"], config.report_steps)
    loader = DataLoader(batches, batch_size=None, sampler=steps, num_workers=1, prefetch_factor=8)
    bar = tqdm(zip(steps, loader, strict=True), desc="report", initial=steps.start, total=config.report_steps)
    smooth = np.zeros(2)
    for step, batch in bar:
        began = time.perf_counter()
        language, auxiliary = report_loss(model, state.report_heads, features, batch)
        take_step(optimizer, language + 0.5 * auxiliary, one_cycle(step, config.report_steps, config.report_lr))
        state.done["report"] = step + 1
        state.seconds += time.perf_counter() - began
        smooth = 0.98 * smooth + 0.02 * np.array([language.item(), auxiliary.item()])
        if step % 25 == 0:
            shown = smooth / (1.0 - 0.98 ** (step - steps.start + 1))
            bar.set_postfix(language=f"{shown[0]:.3f}", auxiliary=f"{shown[1]:.3f}")
        if (step + 1) % config.save_every == 0 or step + 1 == config.report_steps:
            state.save(path, optimizer)
            bar.write(f"report step {step + 1}: {bar.postfix}")


def _restore(state: State, optimizer: torch.optim.Optimizer) -> None:
    if state.optimizer_state is not None:
        optimizer.load_state_dict(state.optimizer_state)
        state.optimizer_state = None


def write_checkpoint(model: Any, processor: Maira2Processor, folder: Path) -> None:
    """Write half precision weights, which the config says to load in single precision: CPUs compute faster in that."""
    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    config_path = folder / "config.json"
    written = json.loads(config_path.read_text(encoding="utf-8"))
    for section in (written, written["text_config"], written["vision_config"]):
        for key in ("dtype", "torch_dtype"):
            if key in section:
                section[key] = "float32"
    config_path.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def train(config: TrainConfig, out: Path) -> None:
    """Run all five steps; `out` receives the checkpoint, its card, and while training the state to go on from."""
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.n_threads)
    torch.manual_seed(config.seed)
    state_path, pool_path = out / "state.pt", out / "pool.pkl"
    pool = load_or_draw(pool_path, config.n_studies, config.seed)
    tokenizer = train_tokenizer(corpus(config.seed))
    processor = make_processor(tokenizer)
    state = State(config, Maira2ForConditionalGeneration(make_config(tokenizer)))
    if state_path.exists():
        state.load(state_path)
    if state.done["vision"] < config.vision_steps:
        train_vision(state, pool, state_path)
        state.optimizer_state = None
    elif state.done["report"] == 0:
        state.optimizer_state = None  # the saved one is the tower's
    train_reports(state, pool, processor, state_path)
    write_checkpoint(state.model, processor, out)
    if config.n_evaluated:
        from sae_lens_maira.phantom.card import write_card
        from sae_lens_maira.phantom.evaluate import evaluate

        scores = evaluate(out, config.n_evaluated)
        write_card(out, scores, asdict(config), state.seconds)
    state_path.unlink()
    pool_path.unlink()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    for option in fields(TrainConfig):
        kind = type(option.default)
        parser.add_argument(f"--{option.name.replace('_', '-')}", type=kind, default=option.default, help=option.metadata["doc"])
    given = vars(parser.parse_args(arguments))
    out = given.pop("out")
    train(TrainConfig(**given), out)


if __name__ == "__main__":
    main()
