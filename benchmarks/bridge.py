"""``run_with_cache`` on rows against the bare forward pass, and against the whole model with ``output_hidden_states``.

A random MAIRA-2 of about 300 M parameters and phantom studies, at the middle layer. All variants run in turn in one
process, in an order that changes each round, so that a slow moment of the machine affects all of them; the ratios are
medians over rounds of ratios within a round.

1. bare: the plain model on inputs already made, embedding and layers 0..L, stopped by a PyTorch hook that raises.
2. run_with_cache: the whole call, from rows to activations: texts, images, forward pass, gathering.
3. inputs: the part of it that makes the real model's inputs.
4. hidden states: the plain model, all layers and logits, on inputs already made, with ``output_hidden_states=True``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sae_lens_maira import phantom
from sae_lens_maira.hooked import HookedMaira2
from sae_lens_maira.maira2 import Maira2ForConditionalGeneration, Maira2Processor
from sae_lens_maira.phantom.model.architecture import make_config, make_processor
from sae_lens_maira.phantom.model.tokenizer import train_tokenizer

N_LAYERS = 20
MIDDLE = N_LAYERS // 2 - 1
BATCH_SIZE = 4
N_BATCHES = 4
N_ROUNDS = 12
MAX_OVERHEAD, MIN_SPEED_UP = 0.05, 1.9


class Stop(Exception):
    """Ends a forward pass after the wanted layer."""


def make_model() -> tuple[Maira2ForConditionalGeneration, Maira2Processor, list[phantom.PhantomStudy]]:
    """A model with random weights, nearly all of them in the language model, as in MAIRA-2."""
    studies = list(phantom.studies(BATCH_SIZE * N_BATCHES, seed=0))
    tokenizer = train_tokenizer([study.findings or "" for study in studies])
    sizes = {"d_vision": 128, "n_vision_layers": 3, "d_model": 1024, "n_layers": N_LAYERS, "d_mlp": 3584}
    torch.manual_seed(0)
    return Maira2ForConditionalGeneration(make_config(tokenizer, **sizes)).eval(), make_processor(tokenizer), studies


def bare_forward(model: Any, inputs: dict[str, Tensor], layer: int = MIDDLE) -> Tensor:
    """A layer's output, and nothing after it."""
    found: list[Tensor] = []

    def stop(_module: Any, _args: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)
        raise Stop

    handle = model.model.language_model.layers[layer].register_forward_hook(stop)
    try:
        model(**inputs, use_cache=False, logits_to_keep=1)
    except Stop:
        pass
    finally:
        handle.remove()
    return found[0]


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@torch.no_grad()
def main() -> None:
    model, processor, studies = make_model()
    hooked = HookedMaira2(model, processor, studies)
    hook = f"blocks.{MIDDLE}.hook_resid_post"
    rows = [hooked.reader.rows(range(k, k + BATCH_SIZE), None) for k in range(0, len(studies), BATCH_SIZE)]
    ready = [hooked.full_inputs(batch).model_inputs for batch in rows]

    def ways(index: int) -> dict[str, Callable[[], object]]:
        return {
            "bare": lambda: bare_forward(model, ready[index]),
            "run_with_cache": lambda: hooked.run_with_cache(rows[index], names_filter=[hook], stop_at_layer=MIDDLE + 1),
            "inputs": lambda: hooked.full_inputs(rows[index]),
            "hidden states": lambda: model(**ready[index], use_cache=False, output_hidden_states=True).hidden_states,
        }

    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    n_tokens = [inputs["input_ids"].numel() // BATCH_SIZE for inputs in ready]
    print(
        f"{n_parameters / 1e6:.0f} M parameters, {N_LAYERS} layers, layer {MIDDLE}; {BATCH_SIZE} studies per batch, "
        f"{min(n_tokens)} to {max(n_tokens)} tokens each; {torch.get_num_threads()} threads; {N_ROUNDS} rounds"
    )
    for way in ways(0).values():
        way()
    rounds: list[dict[str, float]] = []
    for turn in range(N_ROUNDS):
        chosen = list(ways(turn % N_BATCHES).items())
        chosen = chosen[turn % len(chosen) :] + chosen[: turn % len(chosen)]
        rounds.append({name: seconds(way) for name, way in chosen})
    for name in ways(0):
        print(f"{name:16} {statistics.median(found[name] for found in rounds) * 1e3:8.0f} ms")

    def median(ratio: Callable[[dict[str, float]], float]) -> float:
        return statistics.median(map(ratio, rounds))

    overhead = median(lambda found: found["run_with_cache"] / found["bare"]) - 1
    without_inputs = median(lambda found: (found["run_with_cache"] - found["inputs"]) / found["bare"]) - 1
    speed_up = median(lambda found: found["hidden states"] / found["run_with_cache"])
    print(f"run_with_cache over bare: {overhead:+.1%} (target at most {MAX_OVERHEAD:.0%}: the whole call counts)")
    print(f"  of which without making inputs: {without_inputs:+.1%}")
    print(f"hidden states over run_with_cache: {speed_up:.2f} x (target at least {MIN_SPEED_UP} x)")


if __name__ == "__main__":
    main()
