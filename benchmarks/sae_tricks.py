"""What each speed trick of the SAE training step saves; a trick that saves less than 5% is to be deleted.

Every trick is replaced by the plain code, and training steps are timed with and without it in one process: four steps
with, four without, and so on. The first of four is not timed, since it finds the processor's caches as the other
variant left them. A figure is the median over pairs of turns of the time without the trick over the time with it,
followed by the interquartile range.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.sae_step import OURS, SIZES, Size, batches, make_step
from sae_lens_maira.sae import kernels, optimizer, pattern, selection, variant

STEPS_PER_TURN = 4


@dataclass(frozen=True)
class Trick:
    """A trick, its replacement, and the names that are patched."""

    name: str
    instead: str
    patches: tuple[tuple[object, str, Any], ...] = ()
    while_making: bool = False
    """Whether the patch is also needed when the SAE is made; then each variant trains its own SAE."""
    fused: bool = True


def dense_batch_topk(encoder: selection.Encoder, n_wanted: int, guess: selection.ThresholdGuess) -> selection.Selection:
    """``select_batch_topk`` by the top-k of all activations."""
    del guess
    with torch.no_grad():
        preactivations = encoder.preactivations()
        activations = preactivations if encoder.norms is None else preactivations * encoder.norms[:, None]
        top = activations.view(-1).topk(n_wanted, sorted=False)
        positions = top.indices[top.values > 0].sort().values
        n_tokens = encoder.x.shape[0]
        values, found = preactivations.view(-1)[positions], activations.view(-1)[positions]
        return selection.Selection(positions % n_tokens, positions // n_tokens, values, found)


def sampled_batch_topk(
    encoder: selection.Encoder, n_wanted: int, guess: selection.ThresholdGuess
) -> selection.Selection:
    """``select_batch_topk`` without the threshold of the previous step."""
    del guess
    return SELECT(encoder, n_wanted, selection.ThresholdGuess())


SELECT = selection.select_batch_topk


def add_rows(table: Tensor, rows: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """``sum_bags`` by adding one weighted row per pair."""
    bags = torch.repeat_interleave(torch.arange(offsets.numel() - 1), offsets.diff())
    return table.new_zeros(offsets.numel() - 1, table.shape[1]).index_add_(0, bags, table[rows] * weights[:, None])


def multiply_sparse(table: Tensor, rows: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """``sum_bags`` as the product of a sparse and a dense matrix."""
    size = (offsets.numel() - 1, table.shape[0])
    return torch.sparse_csr_tensor(offsets, rows, weights, size, check_invariants=False) @ table


def gathered_products(tables: list[Tensor], decoders: list[Tensor], active: pattern.ActivePattern) -> Tensor:
    """``_sampled_products`` from copies of both rows of each pair."""
    bags = torch.repeat_interleave(torch.arange(active.bag_offsets.numel() - 1), active.bag_offsets.diff())
    found = tables[0].new_zeros(active.n_active)
    for table, decoder in zip(tables, decoders, strict=True):
        found += (table[bags] * decoder[active.latents]).sum(1)
    return found


def both(name: str, replacement: Any) -> tuple[tuple[object, str, Any], ...]:
    """A function of ``pattern`` that ``kernels`` imports by name."""
    return ((pattern, name, replacement), (kernels, name, replacement))


TRICKS = (
    Trick("sparse kernels", "the dense pass", ((variant.MairaMatryoshkaTrainingSAE, "_is_sparse", lambda *_: False),)),
    Trick("threshold before top-k", "top-k of all activations", ((variant, "select_batch_topk", dense_batch_topk),)),
    Trick("remembered threshold", "one from a sample per step", ((variant, "select_batch_topk", sampled_batch_topk),)),
    Trick("blocks of latents", "all activations at once", ((selection, "BLOCK_ELEMENTS", 1 << 40),)),
    Trick("embedding_bag", "index_add_ of rows", both("sum_bags", add_rows)),
    Trick("embedding_bag", "a sparse product", both("sum_bags", multiply_sparse)),
    Trick("sampled_addmm", "products of gathered rows", ((kernels, "_sampled_products", gathered_products),)),
    Trick("blocks of columns", "whole rows", ((pattern, "COLUMNS_PER_BLOCK", 1 << 40),)),
    Trick("latent-major encoder", "token-major", ((variant, "latent_major", lambda W_enc: W_enc),), while_making=True),
    Trick("fused Adam", "PyTorch's default Adam", fused=False),
    Trick("fused Adam on the transpose", "on the parameter", ((optimizer, "step_transposed", lambda optimizer: []),)),
)


@contextmanager
def without(trick: Trick) -> Iterator[None]:
    """Run a block with the trick replaced."""
    found = [patch.object(*entry) for entry in trick.patches]
    for entry in found:
        entry.start()
    try:
        yield
    finally:
        for entry in reversed(found):
            entry.stop()


@contextmanager
def nothing() -> Iterator[None]:
    yield


def price(trick: Trick, size: Size, n_pairs: int) -> tuple[list[float], list[float]]:
    """CPU time and wall time without the trick over those with it, one ratio per pair of turns."""
    data = batches(size, STEPS_PER_TURN)
    step = make_step(OURS, size)
    other = step
    if trick.while_making:
        with without(trick):
            other = make_step(OURS, size)
    ways: list[tuple[Callable[[Tensor], Any], Callable[[], Any], bool]] = [
        (step, nothing, True),
        (other, lambda: without(trick), trick.fused),
    ]
    ratios: tuple[list[float], list[float]] = ([], [])
    for index in range(-1, n_pairs):
        seconds = []
        # The order changes from pair to pair, so that a drift of the machine's speed favors neither.
        for train, context, fused in ways if index % 2 else ways[::-1]:
            if not trick.fused:
                for group in step.__self__.optimizer.param_groups:  # pyright: ignore[reportFunctionMemberAccess]
                    group["fused"] = fused
            with context():
                train(data[0])
                start = time.process_time(), time.perf_counter()
                for x in data[1:]:
                    train(x)
                seconds.append((time.process_time() - start[0], time.perf_counter() - start[1]))
        if index >= 0:
            on, off = seconds if index % 2 else seconds[::-1]
            for found, without_it, with_it in zip(ratios, off, on, strict=True):
                found.append(without_it / with_it)
    return ratios


def spread(ratios: list[float]) -> str:
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle - 1:+.1%} ({low - 1:+.1%} to {high - 1:+.1%})"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="tricks whose name contains this")
    parser.add_argument("--d-in", type=int, help="the size of this width alone")
    arguments = parser.parse_args([] if argv is None else argv)
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    for size in SIZES:
        if arguments.d_in not in (None, size.d_in):
            continue
        print(f"\n{size.d_in} to {size.d_sae}, k {size.k}, {arguments.threads} threads, {arguments.pairs} pairs")
        print("| trick | instead of | CPU time without it | wall time without it |\n| --- | --- | ---: | ---: |")
        for trick in TRICKS:
            if arguments.only in trick.name:
                cpu, wall = price(trick, size, arguments.pairs)
                print(f"| {trick.name} | {trick.instead} | {spread(cpu)} | {spread(wall)} |", flush=True)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
