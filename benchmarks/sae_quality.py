"""Explained variance at equal L0: this package, SAE-Lens and dictionary_learning, from the same activations.

Each library trains on the same tokens in the same order from the same initial weights, with the same learning rate, and
is then scored on held-out tokens with its own encoder and decoder and the same top-k over the batch, so that L0 is
equal. The activations are those of a file (``--activations``, safetensors with one tensor of shape (n, d_in)), or
the phantom model's residual stream, or a synthetic stand-in if its weights are missing; the table says which.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FRACTIONS = [1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2]
N_HELD_OUT = 4096


@dataclass(frozen=True)
class Run:
    """One training: dictionary size, sparsity, tokens per step, steps and learning rate."""

    d_sae: int
    k: int
    n_tokens: int = 512
    n_steps: int = 500
    lr: float = 1e-3


def load_activations(path: str | None, n_studies: int) -> tuple[Tensor, str]:
    """Activations in random order, and the name of their source."""
    generator = torch.Generator().manual_seed(0)
    if path is not None:
        from safetensors.torch import load_file

        found, name = next(iter(load_file(path).values())).float(), Path(path).name
    else:
        from sae_lens_maira.phantom.model.pretrained import PHANTOM_PATH

        if PHANTOM_PATH.exists():
            found, name = _phantom_activations(n_studies), f"phantom, layer 3, {n_studies} studies"
        else:
            found, name = _synthetic_activations(generator), "synthetic stand-in (the phantom's weights are not there)"
    return found[torch.randperm(len(found), generator=generator)], name


def _phantom_activations(n_studies: int, layer: int = 3, batch_size: int = 32) -> Tensor:
    from sae_lens_maira import phantom
    from sae_lens_maira.hooked import HookedMaira2

    model = HookedMaira2.from_pretrained("phantom")
    studies, hook, found = list(phantom.studies(n_studies, seed=1)), f"blocks.{layer}.hook_resid_post", []
    with torch.no_grad():
        for start in range(0, n_studies, batch_size):
            tokens = model.to_tokens(studies[start : start + batch_size])
            acts = model.run_with_cache(tokens, names_filter=[hook], stop_at_layer=layer + 1)[1][hook]
            found.append(acts[tokens != model.tokenizer.pad_token_id].float())
    return torch.cat(found)


def _synthetic_activations(generator: torch.Generator, n: int = 60_000, d_in: int = 160) -> Tensor:
    """Sparse sums of 600 directions with power-law frequencies, plus a mean and some noise."""
    directions = torch.nn.functional.normalize(torch.randn(600, d_in, generator=generator), dim=-1)
    frequency = 0.3 / torch.arange(1, 601).sqrt()
    active = torch.rand(n, 600, generator=generator) < frequency
    strength = torch.rand(n, 600, generator=generator).add(0.5) * active
    noise = 0.05 * torch.randn(n, d_in, generator=generator)
    return strength @ directions + noise + torch.randn(d_in, generator=generator) * 0.3


def train_sae_lens(data: Tensor, run: Run, seed: int, settings: dict[str, Any] | None) -> Callable[[Tensor], Tensor]:
    """Train SAE-Lens's class (``settings`` None) or this package's; returns the function that reconstructs."""
    from sae_lens.saes.matryoshka_batchtopk_sae import (
        MatryoshkaBatchTopKTrainingSAE,
        MatryoshkaBatchTopKTrainingSAEConfig,
    )
    from sae_lens.training.sae_trainer import SAETrainer

    from benchmarks.sae_step import trainer_config
    from sae_lens_maira.sae import MairaMatryoshkaTrainingSAE, MairaMatryoshkaTrainingSAEConfig
    from sae_lens_maira.sae.prefixes import widths_from_fractions

    torch.manual_seed(seed)
    size: dict[str, Any] = {"d_in": data.shape[1], "d_sae": run.d_sae, "k": run.k}
    if settings is None:
        widths = widths_from_fractions(FRACTIONS, run.d_sae)
        config = MatryoshkaBatchTopKTrainingSAEConfig(**size, matryoshka_widths=widths)
        sae = MatryoshkaBatchTopKTrainingSAE(config)
    elif settings.pop("like_dictionary_learning", False):
        config = MairaMatryoshkaTrainingSAEConfig.like_dictionary_learning(
            **size, group_fractions=FRACTIONS, **settings
        )
        sae = MairaMatryoshkaTrainingSAE(config)
    else:
        sae = MairaMatryoshkaTrainingSAE(
            MairaMatryoshkaTrainingSAEConfig(**size, group_fractions=FRACTIONS, **settings)
        )
    trainer = SAETrainer(cfg=trainer_config(run.n_tokens, run.lr), sae=sae, data_provider=iter(()))
    for x in _steps(data, run, seed):
        trainer.step(x)
        trainer.n_training_steps += 1
    return sae


def train_dictionary_learning(data: Tensor, run: Run, seed: int) -> Callable[[Tensor], Tensor]:
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer

    torch.manual_seed(seed)
    trainer = MatryoshkaBatchTopKTrainer(
        steps=10**6,
        activation_dim=data.shape[1],
        dict_size=run.d_sae,
        k=run.k,
        layer=0,
        lm_name="none",
        group_fractions=FRACTIONS,
        lr=run.lr,
        warmup_steps=0,
        device="cpu",
    )
    for step, x in enumerate(_steps(data, run, seed)):
        trainer.update(step, x)
    return lambda x: trainer.ae.decode(trainer.ae.encode(x, use_threshold=False))  # pyright: ignore[reportArgumentType]


LIBRARIES: dict[str, Callable[[Tensor, Run, int], Callable[[Tensor], Tensor]]] = {
    "sae-lens-maira": lambda data, run, seed: train_sae_lens(data, run, seed, {"kernels": "sparse"}),
    "sae-lens-maira, dictionary_learning's recipe": lambda data, run, seed: train_sae_lens(
        data, run, seed, {"kernels": "sparse", "like_dictionary_learning": True}
    ),
    "sae-lens-maira, SAE-Lens's settings": lambda data, run, seed: train_sae_lens(
        data, run, seed, {"kernels": "sparse", "decoder_init_norm": 0.1}
    ),
    "sae-lens": lambda data, run, seed: train_sae_lens(data, run, seed, None),
    "dictionary_learning": train_dictionary_learning,
}


def _steps(data: Tensor, run: Run, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(len(data), generator=generator) for _ in range(_n_epochs(len(data), run))])
    return list(data[order[: run.n_steps * run.n_tokens]].split(run.n_tokens))


def _n_epochs(n: int, run: Run) -> int:
    return -(-run.n_steps * run.n_tokens // n)


@torch.no_grad()
def explained_variance(reconstruct: Callable[[Tensor], Tensor], x: Tensor) -> float:
    return float(1 - (reconstruct(x) - x).pow(2).sum() / (x - x.mean(0)).pow(2).sum())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--activations")
    parser.add_argument("--studies", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500)
    arguments = parser.parse_args([] if argv is None else argv)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    activations, name = load_activations(arguments.activations, arguments.studies)
    n_held_out = min(N_HELD_OUT, len(activations) // 4)
    held_out, data = activations[:n_held_out], activations[n_held_out:]
    run = Run(d_sae=4 * data.shape[1], k=16, n_steps=arguments.steps)
    print(f"\n{name}: {len(data)} tokens, {n_held_out} held out; {data.shape[1]} -> {run.d_sae}, L0 {run.k}")
    print(f"{run.n_steps} steps of {run.n_tokens} tokens, lr {run.lr}")
    print("| | " + " | ".join(f"seed {seed}" for seed in range(arguments.seeds)) + " | mean | s |")
    print("| --- |" + " ---: |" * (arguments.seeds + 2))
    for library, train in LIBRARIES.items():
        start = time.perf_counter()
        scores = [explained_variance(train(data, run, seed), held_out) for seed in range(arguments.seeds)]
        cells = " | ".join(f"{score:.4f}" for score in (*scores, statistics.mean(scores)))
        print(f"| {library} | {cells} | {time.perf_counter() - start:.0f} |", flush=True)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
