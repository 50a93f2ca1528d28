"""One training step of the Matryoshka SAE, optimizer included: this package, SAE-Lens and dictionary_learning.

All train on the same data in one process, with the same number of threads, in turn, so that a slow moment of the
machine affects all of them. A turn is one step that is not timed, which fills the caches as in the library's own
training, and then the median of three; ratios are medians over rounds. SAE-Lens and this package run in SAE-Lens's
stock ``SAETrainer`` (firing statistics, gradient clipping, scheduler); dictionary_learning runs its
``MatryoshkaBatchTopKTrainer.update``. The floor is one encoder product, ``x @ W_enc``. Peak memory is measured in one
process per library, as the growth of the resident set over steps.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from benchmarks._memory import memory_mib

if TYPE_CHECKING:
    from sae_lens.config import SAETrainerConfig

N_TOKENS = 2048
FRACTIONS = [1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32]
PEERS = ("sae-lens", "dictionary_learning")
OURS = "sae-lens-maira"


@dataclass(frozen=True)
class Size:
    d_in: int
    d_sae: int
    k: int
    targets: tuple[float, float]
    """Targets: how many times faster than SAE-Lens and than dictionary_learning."""


SIZES = (Size(512, 4096, 32, (8, 5)), Size(1024, 8192, 64, (8, 4.5)))


def batches(size: Size, n: int = 4) -> list[torch.Tensor]:
    """Sparse combinations of random directions plus noise: the kind of data that an SAE is made for."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(2 * size.d_in, size.d_in, generator=generator) / size.d_in**0.5
    found = []
    for _ in range(n):
        active = torch.rand(N_TOKENS, 2 * size.d_in, generator=generator) < 16 / size.d_in
        strength = torch.rand(N_TOKENS, 2 * size.d_in, generator=generator) * active
        noise = 0.01 * torch.randn(N_TOKENS, size.d_in, generator=generator)
        found.append(strength @ directions + noise)
    return found


def trainer_config(n_tokens: int, lr: float = 1e-4) -> SAETrainerConfig:
    """SAE-Lens's trainer with a constant learning rate and nothing logged or saved."""
    from sae_lens.config import LoggingConfig, SAETrainerConfig

    return SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=10**9,
        device="cpu",
        autocast=False,
        lr=lr,
        lr_end=lr / 10,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=0,
        n_restart_cycles=1,
        train_batch_size_samples=n_tokens,
        dead_feature_window=10**6,
        feature_sampling_window=10**6,
        logger=LoggingConfig(log_to_wandb=False),
    )


def make_step(library: str, size: Size) -> Callable[[torch.Tensor], object]:
    """A function that trains one library on one batch."""
    torch.manual_seed(0)
    if library == "dictionary_learning":
        from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer

        trainer = MatryoshkaBatchTopKTrainer(
            steps=10**6,
            activation_dim=size.d_in,
            dict_size=size.d_sae,
            k=size.k,
            layer=0,
            lm_name="none",
            group_fractions=FRACTIONS,
            lr=1e-4,
            warmup_steps=1,
            device="cpu",
        )
        # Step 1, because step 0 would also compute the initial bias.
        return lambda x: trainer.update(1, x)

    from sae_lens.saes.matryoshka_batchtopk_sae import (
        MatryoshkaBatchTopKTrainingSAE,
        MatryoshkaBatchTopKTrainingSAEConfig,
    )
    from sae_lens.training.sae_trainer import SAETrainer

    from sae_lens_maira.sae import MairaMatryoshkaTrainingSAE, MairaMatryoshkaTrainingSAEConfig
    from sae_lens_maira.sae.prefixes import widths_from_fractions

    widths = widths_from_fractions(FRACTIONS, size.d_sae)
    if library == OURS:
        sae = MairaMatryoshkaTrainingSAE(
            MairaMatryoshkaTrainingSAEConfig(d_in=size.d_in, d_sae=size.d_sae, k=size.k, matryoshka_widths=widths)
        )
    else:
        sae = MatryoshkaBatchTopKTrainingSAE(
            MatryoshkaBatchTopKTrainingSAEConfig(d_in=size.d_in, d_sae=size.d_sae, k=size.k, matryoshka_widths=widths)
        )
    trainer = SAETrainer(cfg=trainer_config(N_TOKENS), sae=sae, data_provider=iter(()))
    return trainer.step


def time_steps(size: Size, n_rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds per step, by library and round; the first round is not counted."""
    data = batches(size)
    steps = {library: make_step(library, size) for library in (OURS, *PEERS)}
    weights = torch.randn(size.d_in, size.d_sae)
    out = torch.empty(N_TOKENS, size.d_sae)
    steps["floor"] = lambda x: torch.mm(x, weights, out=out)
    found: dict[str, list[float]] = {library: [] for library in steps}
    for index in range(-1, n_rounds):
        for library, step in steps.items():
            seconds = [_time(step, x, clock) for x in data]
            if index >= 0:
                found[library].append(statistics.median(seconds[1:]))
    return found


def _time(step: Callable[[torch.Tensor], object], x: torch.Tensor, clock: Callable[[], float]) -> float:
    start = clock()
    step(x)
    return clock() - start


def _peak(library: str, size: Size, queue: multiprocessing.Queue[float]) -> None:
    warnings.simplefilter("ignore")
    data = batches(size, 2)
    step = make_step(library, size)
    gc.collect()
    start = memory_mib("VmRSS")
    for x in (*data, *data):
        step(x)
    queue.put(memory_mib("VmHWM") - start)


def peak_memory(library: str, size: Size) -> float:
    """MiB by which a fresh process grows over four steps: gradients, optimizer state and everything temporary."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_peak, args=(library, size, queue))
    process.start()
    value = queue.get()
    process.join()
    return value


def report(size: Size, n_rounds: int, memory: bool, clock: str) -> None:
    times = time_steps(size, n_rounds, time.process_time if clock == "cpu" else time.perf_counter)
    medians = {library: 1e3 * statistics.median(seconds) for library, seconds in times.items()}
    print(
        f"\n{size.d_in}->{size.d_sae}, k {size.k}, {N_TOKENS} tokens, {torch.get_num_threads()} threads, {clock} time"
    )
    print("| | ms per step | times ours | peak MiB |\n| --- | ---: | ---: | ---: |")
    for library in (OURS, *PEERS, "floor"):
        ratio = statistics.median(t / o for t, o in zip(times[library], times[OURS], strict=True))
        peak = f"{peak_memory(library, size):.0f}" if memory and library != "floor" else ""
        name = "one encoder product" if library == "floor" else library
        print(f"| {name} | {medians[library]:.1f} | {ratio:.2f} | {peak} |")
    print(f"target: {size.targets[0]} times SAE-Lens, {size.targets[1]} times dictionary_learning")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a busy machine, 1 thread")
    arguments = parser.parse_args([] if argv is None else argv)
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    for size in SIZES:
        report(size, arguments.rounds, not arguments.no_memory, arguments.clock)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
