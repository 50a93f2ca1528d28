"""Steered reports and scores of latents from one prefill, against one by one and against a plain batch.

The phantom, one study, an SAE of 2,048 random latents after layer 2. All ways run in turn in one process, in an order
that changes each round; the ratios are medians over rounds of ratios within a round.

32 reports of 48 tokens, each row with its own latent and dose, edited from the last prompt token on:

1. one by one: ``generate`` inside ``model.steered(...)``, once per row (measured on 2 rows per round).
2. batch: transformers' ``generate`` on the prompt repeated 32 times, with one PyTorch hook that adds each row's vector.
3. engine: one prefill, whose keys and values all rows share.
4. unedited: the engine's same decoding steps without any edit.

Next-token logits of all latents, each added at the last prompt token:

5. one by one: a forward pass inside ``model.steered(...)`` per latent (measured on 8 latents per round).
6. engine: rows of one token that continue one prefill.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.saes.standard_sae import StandardSAEConfig
from torch import Tensor

from sae_lens_maira import phantom
from sae_lens_maira.hooked import Add, HookedMaira2, Where
from sae_lens_maira.hooked.dictionary import Dictionary
from sae_lens_maira.hooked.points import hidden_states
from sae_lens_maira.steering.choice import next_token_logits
from sae_lens_maira.steering.continuation import Row
from sae_lens_maira.steering.engine import SteeringEngine
from sae_lens_maira.steering.reports import write_reports

HOOK, LAYER, D_SAE = "blocks.2.hook_resid_post", 2, 2048
N_ROWS, N_NEW, N_ROUNDS = 32, 48, 3
N_ALONE, N_LATENTS_ALONE = 2, 8
WHERE = Where(include=("last_prompt_token", "report"))
TARGETS = {"one by one": 10.0, "batch": 1.5, "scores": 100.0}
MAX_OVER_UNEDITED = 1.5


def make_dictionary(d_in: int) -> Dictionary:
    """Random decoder rows of norm 1, and a strength of 30, about a tenth of the residual stream's norm."""
    config = StandardSAEConfig(d_in=d_in, d_sae=D_SAE).to_dict()
    metadata = {"hook_name": HOOK, "model_name": "phantom", "context_size": 48, "prepend_bos": False}
    sae: Any = SAE.from_dict(
        {**config, "architecture": "standard", "dtype": "float32", "device": "cpu", "metadata": metadata}
    )
    torch.manual_seed(0)
    with torch.no_grad():
        sae.W_dec.normal_()
        sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
    return Dictionary(sae, torch.full((D_SAE,), 30.0))


def batch_reports(model: HookedMaira2, study: phantom.PhantomStudy, vectors: Tensor) -> Tensor:
    """Token ids of transformers' ``generate`` with one vector per row, from the last prompt token on."""
    inputs = model.reader.for_generation([study] * len(vectors)).model_inputs

    def add(_module: Any, _args: Any, output: Any) -> Any:
        x = hidden_states(output)
        changed = torch.cat([x[:, :-1], x[:, -1:] + vectors[:, None]], dim=1)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = model.vlm.layers(model.maira2)[LAYER].register_forward_hook(add)
    try:
        output = model.maira2.generate(**inputs, do_sample=False, max_new_tokens=N_NEW, min_new_tokens=N_NEW)
    finally:
        handle.remove()
    return output[:, inputs["input_ids"].shape[1] :]


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@torch.no_grad()
def main() -> None:
    study = phantom.render(["cardiomegaly"], 1)
    model = HookedMaira2.from_pretrained("phantom", [study])
    dictionary = make_dictionary(model.cfg.d_model)
    engine = SteeringEngine(model, {HOOK: dictionary})
    rows = [Row((Add(row, 0.5 + 0.1 * row),), WHERE) for row in range(N_ROWS)]
    vectors = torch.stack([dictionary.decoder[row] * 30.0 * (0.5 + 0.1 * row) for row in range(N_ROWS)])
    length: dict[str, Any] = {"max_new_tokens": N_NEW, "min_new_tokens": N_NEW}
    tokens = model.reader.rows([0], None)

    def one_by_one() -> None:
        for row in rows[:: N_ROWS // N_ALONE]:
            with model.steered(row.edits, WHERE, saes=dictionary):
                model.generate(study, **length)

    def scores_one_by_one() -> None:
        for feature in range(N_LATENTS_ALONE):
            with model.steered([Add(feature, 1.0)], Where(include=("last_prompt_token",)), saes=dictionary):
                model(tokens)

    ways: dict[str, Callable[[], object]] = {
        "one by one": one_by_one,
        "batch": lambda: batch_reports(model, study, vectors),
        "engine": lambda: write_reports(engine, study, rows, **length),
        "unedited": lambda: write_reports(engine, study, [Row()] * N_ROWS, **length),
        "scores one by one": scores_one_by_one,
        "scores": lambda: next_token_logits(engine, engine.prefill(study), range(D_SAE), 1.0),
    }
    check_equal(engine, model, study, rows, vectors, length)
    scale = {"one by one": N_ROWS / N_ALONE, "scores one by one": D_SAE / N_LATENTS_ALONE}
    rounds: list[dict[str, float]] = []
    for turn in range(N_ROUNDS):
        order = list(ways)[turn % len(ways) :] + list(ways)[: turn % len(ways)]
        rounds.append({name: seconds(ways[name]) * scale.get(name, 1.0) for name in order})
    print(f"{N_ROWS} reports of {N_NEW} tokens; {D_SAE} latents; {torch.get_num_threads()} threads; {N_ROUNDS} rounds")
    for name in ways:
        print(f"{name:20} {statistics.median(found[name] for found in rounds):8.2f} s")

    def median(above: str, below: str) -> float:
        return statistics.median(found[above] / found[below] for found in rounds)

    for name in ("one by one", "batch"):
        print(f"{name} over engine: {median(name, 'engine'):.1f} x (target at least {TARGETS[name]} x)")
    print(f"engine over unedited: {median('engine', 'unedited'):.2f} x (target at most {MAX_OVER_UNEDITED} x)")
    ratio = median("scores one by one", "scores")
    print(f"scores one by one over scores: {ratio:.0f} x (target at least {TARGETS['scores']:.0f} x)")


def check_equal(
    engine: SteeringEngine,
    model: HookedMaira2,
    study: phantom.PhantomStudy,
    rows: list[Row],
    vectors: Tensor,
    length: dict[str, Any],
) -> None:
    """All ways write the same tokens."""
    written = [list(report.tokens) for report in write_reports(engine, study, rows, **length)]
    if written != batch_reports(model, study, vectors).tolist():
        raise AssertionError("the engine's tokens are not those of the plain batch")


if __name__ == "__main__":
    main()
