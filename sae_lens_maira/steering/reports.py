"""Steered reports: rows that differ in their edits and doses, written as one batch from one prefill.

Finished rows leave the batch. A row that repeats itself without end is stopped and counted. Sampled tokens come from
each row's own random numbers, so a row's report is the same alone and in any batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_maira.data.study import Study
from sae_lens_maira.errors import SteeringError
from sae_lens_maira.steering.continuation import Continuation, Prefill, Row
from sae_lens_maira.steering.engine import SteeringEngine

Ending = Literal["end", "length", "repetition"]
_LONGEST_PERIOD, _N_REPEATS, _SHORTEST_LOOP = 32, 4, 12
_WASTE = 0.8
"""Rows are removed from the batch once at most this share of it is still being written."""


@dataclass(frozen=True)
class SteeredReport:
    """One written report.

    Args:
        text: without special tokens.
        tokens: ids of its tokens, without the end of sequence.
        ending: the model ended it, it reached the largest length, or it repeated itself and was stopped.
        n_asked: positions that the where-clause chose, times hook points.
        n_edited: positions that were edited; equal to ``n_asked`` unless something is wrong.
    """

    text: str
    tokens: tuple[int, ...]
    ending: Ending
    n_asked: int
    n_edited: int


@torch.no_grad()
def write_reports(
    engine: SteeringEngine,
    study: Study | Prefill,
    rows: Sequence[Row],
    *,
    max_new_tokens: int = 300,
    min_new_tokens: int = 0,
    temperature: float = 0.0,
    max_rows: int = 128,
) -> list[SteeredReport]:
    """Write a report for every row.

    Args:
        engine: runs the model.
        study: the study, or its prefill.
        rows: the edits of each report.
        max_new_tokens: largest number of tokens of a report.
        min_new_tokens: a report neither ends nor is stopped for repetition before it has this many tokens.
        temperature: 0 takes the likeliest token; above, tokens are sampled with each row's seed.
        max_rows: rows in one batch; more are written in turn.

    Raises:
        SteeringError: an edit or a setting is wrong, or a where-clause selects nothing.
    """
    if not 0 <= temperature < float("inf"):
        raise SteeringError(f"The temperature is {temperature}; give 0, or a positive number to sample.")
    prefill = study if isinstance(study, Prefill) else engine.prefill(study)
    found: list[SteeredReport] = []
    for start in range(0, len(rows), max_rows):
        chunk = rows[start : start + max_rows]
        found += _Writer(engine, prefill, chunk, (min_new_tokens, max_new_tokens), temperature).write()
    return found


class _Writer:
    """Writes one batch of reports."""

    def __init__(
        self,
        engine: SteeringEngine,
        prefill: Prefill,
        rows: Sequence[Row],
        lengths: tuple[int, int],
        temperature: float,
    ) -> None:
        self._engine, self._prefill = engine, prefill
        (self._min_new_tokens, self._max_new_tokens), self._temperature = lengths, temperature
        self._state: Continuation = engine.start(prefill, rows)
        self._generators = [torch.Generator().manual_seed(row.seed) for row in rows]
        self._tokens: list[list[int]] = [[] for _ in rows]
        self._endings: list[Ending | None] = [None] * len(rows)
        self._counts: list[tuple[int, int]] = [(0, 0)] * len(rows)
        self._numbers = list(range(len(rows)))
        """The number of each row that is still in the batch."""
        ends = engine.model.vlm.module.generation_config.eos_token_id
        self._ends = set(ends if isinstance(ends, list | tuple) else [ends])

    def write(self) -> list[SteeredReport]:
        for _ in range(self._max_new_tokens):
            chosen = self._choose()
            for place, token in enumerate(chosen.tolist()):
                self._take(place, token)
            live = [place for place, number in enumerate(self._numbers) if self._endings[number] is None]
            if not live:
                break
            if len(live) <= _WASTE * len(self._numbers):
                self._numbers = [self._numbers[place] for place in live]
                kept = torch.tensor(live)
                self._state.select(kept)
                chosen = chosen[kept.to(chosen.device)]
            self._engine.advance(self._state, chosen)
        for place, number in enumerate(self._numbers):
            if self._endings[number] is None:
                self._finish(place, "length")
        return [self._report(number) for number in range(len(self._tokens))]

    def _take(self, place: int, token: int) -> None:
        number = self._numbers[place]
        if self._endings[number] is not None:
            return
        if token in self._ends:
            self._finish(place, "end")
            return
        tokens = self._tokens[number]
        tokens.append(token)
        if len(tokens) == self._max_new_tokens:
            self._finish(place, "length")
        elif len(tokens) >= self._min_new_tokens and is_loop(tokens):
            self._finish(place, "repetition")

    def _finish(self, place: int, ending: Ending) -> None:
        number = self._numbers[place]
        self._endings[number] = ending
        self._counts[number] = (int(self._state.n_asked[place]), int(self._state.n_edited[place]))

    def _choose(self) -> Int[Tensor, " rows"]:
        logits = self._state.logits.float()
        if self._state.n_new < self._min_new_tokens:
            logits = logits.index_fill(1, torch.tensor(sorted(self._ends), device=logits.device), -torch.inf)
        if self._temperature == 0:
            return logits.argmax(dim=-1)
        generators = [self._generators[number] for number in self._numbers]
        return sample(logits / self._temperature, generators)

    def _report(self, number: int) -> SteeredReport:
        engine, ids = self._engine, self._prefill.ids
        tokens = torch.tensor([self._tokens[number]], dtype=torch.long, device=ids.device)
        processor: Any = engine.model.vlm.processor
        text = processor.decode(torch.cat([ids, tokens], dim=1), ids)[0]
        ending = self._endings[number]
        assert ending is not None
        return SteeredReport(text, tuple(self._tokens[number]), ending, *self._counts[number])


def sample(logits: Float[Tensor, "rows d_vocab"], generators: Sequence[torch.Generator]) -> Int[Tensor, " rows"]:
    """One token of each row by the inverse of its cumulative distribution, with each row's own random number."""
    draws = torch.tensor([float(torch.rand((), generator=own, dtype=torch.float64)) for own in generators])
    cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)
    reached = draws.to(cumulative)[:, None] * cumulative[:, -1:]
    return (cumulative <= reached).sum(dim=-1).clamp(max=logits.shape[-1] - 1)


def is_loop(tokens: Sequence[int]) -> bool:
    """Whether tokens end in a sequence that is repeated at least four times, over at least twelve tokens."""
    n = len(tokens)
    for period in range(1, _LONGEST_PERIOD + 1):
        length = max(period * _N_REPEATS, -(-_SHORTEST_LOOP // period) * period)
        if length > n:
            continue
        end = tokens[n - period :]
        if all(tokens[n - back - period : n - back] == end for back in range(period, length, period)):
            return True
    return False
