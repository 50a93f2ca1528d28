"""Make the phantom model: `python -m sae_lens_maira.phantom.training.train --out DIR`.

1. Draw a pool of studies (minutes, two processes).
2. Learn a tokenizer on their text.
3. Train the vision tower on labels (`vision_training`), then freeze it and compute its features once.
4. Train the projector and the language model on reports (`report_training`).
5. Write the checkpoint in half precision with its processor, score it on held-out studies, and write its card.

Everything is a function of the configuration. After an interruption the same command draws the pool again and resumes
from its last state.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from sae_lens_maira.maira2.adapter import study_prompt
from sae_lens_maira.maira2.modeling import Maira2ForConditionalGeneration
from sae_lens_maira.maira2.processing import Maira2Processor
from sae_lens_maira.phantom.generate import studies
from sae_lens_maira.phantom.model.architecture import initialize, make_config, make_processor
from sae_lens_maira.phantom.model.tokenizer import train_tokenizer
from sae_lens_maira.phantom.training.config import PhantomTrainingConfig
from sae_lens_maira.phantom.training.optimization import Process, TrainingState, train_reports, train_vision
from sae_lens_maira.phantom.training.pool import Pool, draw_pool
from sae_lens_maira.phantom.words import requests
from sae_lens_maira.phantom.words.grammar import NORMAL_STATEMENTS, all_claims, sentences
from sae_lens_maira.settings import settings_of

_STATE, _MEETING_POINT = "state.pt", "processes"


def train(config: PhantomTrainingConfig, out: Path) -> None:
    """Run all five steps; ``out`` receives the checkpoint, its card, and while training the state to resume from."""
    out.mkdir(parents=True, exist_ok=True)
    pool = draw_pool(config.n_studies, config.seed)
    if config.n_processes == 1:
        optimize(0, config, out, pool)
    else:
        (out / _MEETING_POINT).unlink(missing_ok=True)
        spawn(optimize, args=(config, out, pool), nprocs=config.n_processes)
        (out / _MEETING_POINT).unlink(missing_ok=True)
    state, processor = new_state(config)
    state.load(out / _STATE)
    write_checkpoint(state.model, processor, out)
    if config.n_evaluated:
        from sae_lens_maira.phantom.training.card import write_card
        from sae_lens_maira.phantom.training.evaluate import evaluate

        write_card(out, evaluate(out, config.n_evaluated), asdict(config), state.seconds)
    (out / _STATE).unlink()


def optimize(rank: int, config: PhantomTrainingConfig, out: Path, pool: Pool) -> None:
    """Both training stages, as the process of one rank."""
    torch.set_num_threads(1)
    process = Process(rank, config.n_processes)
    if process.world_size > 1:
        meeting_point = f"file://{(out / _MEETING_POINT).resolve()}"
        dist.init_process_group("gloo", init_method=meeting_point, rank=rank, world_size=process.world_size)
    state, processor = new_state(config)
    if (out / _STATE).exists():
        state.load(out / _STATE)
    if state.done["vision"] < config.vision_steps:
        train_vision(state, pool, process, out / _STATE)
    train_reports(state, pool, processor, process, out / _STATE)
    if process.world_size > 1:
        dist.destroy_process_group()


def new_state(config: PhantomTrainingConfig) -> tuple[TrainingState, Maira2Processor]:
    """An untrained model with its heads, the same in every process, and its processor."""
    tokenizer = train_tokenizer(corpus(config.seed))
    torch.manual_seed(config.seed)
    model = Maira2ForConditionalGeneration(make_config(tokenizer))
    initialize(model)
    return TrainingState(config, model), make_processor(tokenizer)


def corpus(seed: int, n_studies: int = 3_000) -> list[str]:
    """The tokenizer's training text: every sentence and section once, and the prompts and reports of some studies."""
    texts = [text for claim in all_claims() for text in sentences(claim)]
    texts += [text for statement in NORMAL_STATEMENTS for text in statement.wordings]
    for table in (requests.INDICATIONS, requests.TECHNIQUES, requests.COMPARISONS):
        texts += [text for wordings in table.values() for text in wordings]
    for k, study in enumerate(studies(n_studies, seed)):
        pieces = study_prompt(study, "prompt", grounded=k % 2 == 0).pieces()
        texts += ["".join(part.text for part in piece) for piece in pieces if isinstance(piece, tuple)]
        texts.append(study.findings or "")
    return [*texts, "A radiology assistant describes a phantom study. USER: ASSISTANT:"]


def write_checkpoint(model: Any, processor: Maira2Processor, folder: Path) -> None:
    """Write weights in half precision, and a config that loads them in single precision, in which CPUs are faster."""
    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    config_path = folder / "config.json"
    written = json.loads(config_path.read_text(encoding="utf-8"))
    for section in (written, written["text_config"], written["vision_config"]):
        for key in ("dtype", "torch_dtype"):
            if key in section:
                section[key] = "float32"
    config_path.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; its options are the fields of :class:`PhantomTrainingConfig`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    for option in settings_of(PhantomTrainingConfig):
        text = f"{option.text} (type: {option.hint.__name__}, default: {option.default})"
        parser.add_argument(f"--{option.field}", type=option.hint, default=option.default, help=text)
    options = vars(parser.parse_args(arguments))
    out = options.pop("out")
    train(PhantomTrainingConfig(**options), out)


if __name__ == "__main__":
    main()
