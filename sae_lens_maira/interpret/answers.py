"""Asks many questions at once, keeps every answer on disk, and never asks the same question twice.

    answers/ab/abcdef...json     one answer: the reply, by a hash of model and question

Answers are written as they come, so Ctrl-C or a killed process loses none, and the same command goes on from there. The
result depends on the questions and answers alone, never on their order in time.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from tqdm.auto import tqdm

from sae_lens_maira.errors import InterpretError, Interrupted
from sae_lens_maira.files import from_json, to_json, write_text
from sae_lens_maira.interpret.chat import Chat, ChatFailure, ChatReply, ChatRequest, placeholder
from sae_lens_maira.interruption import noticed_interruptions

Answer: TypeAlias = ChatReply | ChatFailure
_ANSWER = "Stopping after the open requests; press Ctrl-C again to stop at once."


@dataclass(frozen=True)
class Price:
    """What tokens cost, and the most that may be spent.

    Args:
        per_million_prompt: price of a million tokens of questions, in any currency.
        per_million_completion: price of a million tokens of answers.
        most_money: stop before more than this is spent; None for no limit.
        most_requests: stop before more than this many requests; None for no limit.
    """

    per_million_prompt: float = 0.0
    per_million_completion: float = 0.0
    most_money: float | None = None
    most_requests: int | None = None

    def of(self, n_prompt: int, n_completion: int) -> float:
        """The price of tokens."""
        return (n_prompt * self.per_million_prompt + n_completion * self.per_million_completion) / 1e6


@dataclass
class Spending:
    """What a run has spent: requests by purpose, tokens and money; and, of a dry run, what it would spend."""

    requests: Counter[str] = field(default_factory=Counter)
    n_prompt: int = 0
    n_completion: int = 0
    money: float = 0.0

    def describe(self) -> str:
        """One line for people."""
        by_purpose = ", ".join(f"{count} {purpose}" for purpose, count in sorted(self.requests.items()))
        money = f", {self.money:.2f} by the given price" if self.money else ""
        total = self.requests.total()
        return f"{total} requests ({by_purpose or 'none'}), {self.n_prompt + self.n_completion:,} tokens{money}"


@dataclass
class AnswerRecord:
    """All answers that a result rests on, new or kept; the same for a run that was interrupted and one that was not.

    Args:
        requests: number of questions, by purpose.
        n_prompt: tokens of the questions.
        n_completion: tokens of the answers.
        modes: how structured answers were asked for.
        n_without_logprobs: one-word answers without log probabilities.
        failures: purpose and reason of each question without an answer.
    """

    requests: Counter[str] = field(default_factory=Counter)
    n_prompt: int = 0
    n_completion: int = 0
    modes: Counter[str] = field(default_factory=Counter)
    n_without_logprobs: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)

    def add(self, request: ChatRequest, answer: Answer) -> None:
        """Count one question and its answer."""
        self.requests[request.purpose] += 1
        if isinstance(answer, ChatFailure):
            self.failures.append((request.purpose, str(answer)))
            return
        self.n_prompt += answer.n_prompt
        self.n_completion += answer.n_completion
        if request.schema is not None:
            self.modes[answer.mode] += 1
        elif not answer.top:
            self.n_without_logprobs += 1

    @property
    def degraded(self) -> list[str]:
        """What the server could not do as it should."""
        found = [f"{mode} in place of json_schema" for mode in sorted(self.modes) if mode != "json_schema"]
        return [*found, "no log probabilities"] if self.n_without_logprobs else found


class Answers:
    """A model, its answers on disk, and a budget.

    Args:
        chat: the model.
        folder: of the answers.
        concurrency: requests at a time.
        price: prices and limits.
        dry_run: count the requests that would be made; placeholders stand for the answers.
        show_progress: whether to show progress bars.
    """

    def __init__(
        self,
        chat: Chat,
        folder: Path,
        *,
        concurrency: int = 4,
        price: Price | None = None,
        dry_run: bool = False,
        show_progress: bool = True,
    ) -> None:
        self.chat = chat
        self.spending = Spending()
        self.record = AnswerRecord()
        self._recorded: set[str] = set()
        self._folder, self._concurrency, self._price = folder, concurrency, price or Price()
        self._dry_run, self._show_progress = dry_run, show_progress
        self._lock = threading.Lock()

    def ask_all(self, requests: Sequence[ChatRequest], description: str) -> list[Answer]:
        """An answer to each question, in order; equal questions are asked once.

        Raises:
            InterpretError: the budget is spent.
            Interrupted: Ctrl-C was pressed.
        """
        keys = [request.key(self.chat.name) for request in requests]
        found: dict[str, Answer] = {key: reply for key in dict.fromkeys(keys) if (reply := self._kept(key)) is not None}
        open_requests = {key: request for key, request in zip(keys, requests, strict=True) if key not in found}
        if self._dry_run:
            for key, request in open_requests.items():
                if key not in self._recorded:
                    self._count(request, None)
                found[key] = placeholder(request, key)
        elif open_requests:
            found |= self._ask(open_requests, description)
        for key, request in zip(keys, requests, strict=True):
            if key not in self._recorded:
                self._recorded.add(key)
                self.record.add(request, found[key])
        return [found[key] for key in keys]

    def _ask(self, requests: dict[str, ChatRequest], description: str) -> dict[str, Answer]:
        found: dict[str, Answer] = {}
        waiting = list(reversed(requests.items()))
        running: dict[Future[Answer], str] = {}
        stopped: str | None = None
        bar = tqdm(total=len(requests), desc=description, unit="request", disable=not self._show_progress)
        with bar, noticed_interruptions(_ANSWER) as stop, ThreadPoolExecutor(self._concurrency) as pool:
            while running or (waiting and not stopped):
                while waiting and not stopped and len(running) < self._concurrency:
                    stopped = "interrupted" if stop.made else self._spent(waiting[-1][1], len(running))
                    if not stopped:
                        key, request = waiting.pop()
                        running[pool.submit(self._one, key, request)] = key
                done, _ = wait(running, return_when=FIRST_COMPLETED) if running else (set(), None)
                for future in done:
                    found[running.pop(future)] = future.result()
                    bar.update()
                stopped = "interrupted" if stop.made else stopped
        if stopped == "interrupted":
            raise Interrupted("interrupted; all answers so far are kept, and the same command goes on from here")
        if stopped:
            raise InterpretError(
                f"The budget ({stopped}) is spent with {len(waiting)} requests of '{description}' left; all answers "
                "are kept, so raise the budget and run the same command again."
            )
        return found

    def _one(self, key: str, request: ChatRequest) -> Answer:
        try:
            reply = self.chat.ask(request)
        except ChatFailure as failure:
            self._count(request, None)
            return failure
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, to_json(reply.to_dict()))
        self._count(request, reply)
        return reply

    def _count(self, request: ChatRequest, reply: ChatReply | None) -> None:
        n_prompt = reply.n_prompt if reply and reply.n_prompt else request.n_tokens
        n_completion = reply.n_completion if reply and reply.n_completion else request.max_tokens
        with self._lock:
            self.spending.requests[request.purpose] += 1
            self.spending.n_prompt += n_prompt
            self.spending.n_completion += n_completion
            self.spending.money += self._price.of(n_prompt, n_completion)

    def _spent(self, request: ChatRequest, n_running: int) -> str | None:
        """The limit that one more request would exceed."""
        price = self._price
        n_requests = self.spending.requests.total() + n_running + 1
        if price.most_requests is not None and n_requests > price.most_requests:
            return f"{price.most_requests} requests"
        more = price.of(request.n_tokens, request.max_tokens) * (n_running + 1)
        if price.most_money is not None and self.spending.money + more > price.most_money:
            return f"{price.most_money:g} of money"
        return None

    def _kept(self, key: str) -> ChatReply | None:
        try:
            return ChatReply.from_dict(from_json(self._path(key).read_bytes()))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.json"
