"""Stage 2 of the training, its batches: prompts with several answers, as tokens and targets.

Each step draws studies of about the same prompt length and picks a task for each: findings, grounded findings, or
phrase grounding. Several answers to one prompt, each newly worded and ordered, share one row: the prompt, which is most
of the cost, is computed once, and no answer sees another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_maira.data.study import Change, SentenceLabel, TokenKind
from sae_lens_maira.maira2.processing import Maira2Processor
from sae_lens_maira.maira2.prompts import FindingsPrompt, PhraseGroundingPrompt, Prompt
from sae_lens_maira.maira2.tokenization import token_kinds
from sae_lens_maira.phantom.generate import technique_of
from sae_lens_maira.phantom.training.pool import Pool, PooledStudy
from sae_lens_maira.phantom.words import report, requests
from sae_lens_maira.phantom.world.concepts import CHANGES, VISIBLE, visible_labels

_GROUNDED_SHARE, _PHRASE_SHARE = 0.36, 0.08
_NO_IMAGE = np.zeros((1, 1), np.uint8)  # prompts are only rendered here; the pixels come from the feature cache


class ReportBatch(NamedTuple):
    """One step's input. A row is a prompt, several answers to it one after the other, and padding.

    ``images`` are rows of the feature cache, in the order of the placeholders. Targets and boundaries name the row and
    position whose output predicts them; several answers share the last prompt token.
    """

    input_ids: Int[Tensor, "batch sequence"]
    position_ids: Int[Tensor, "batch sequence"]
    """Every answer continues the prompt's positions."""
    segments: Int[Tensor, "batch sequence"]
    """0 in the prompt, k in answer k, -1 in padding."""
    images: Int[Tensor, " n_images"]
    answer_start: Int[Tensor, " batch"]
    """Position of the last prompt token."""
    predicted_from: Int[Tensor, "n_targets 2"]
    """Row and position."""
    targets: Int[Tensor, " n_targets"]
    """Token ids."""
    present: Float[Tensor, "batch n_concepts"]
    """0 or 1."""
    change: Int[Tensor, "batch n_concepts"]
    """Class of the change; -100 where it is not trained on."""
    boundaries: Int[Tensor, "n_boundaries 2"]
    """Row and position of the token before each sentence, and before the end."""
    remaining: Float[Tensor, "n_boundaries 2*n_concepts"]
    """0 or 1: positive concepts that are still to be said, then removed ones."""


class _Answer(NamedTuple):
    """One rendered prompt with its answer, as tokens."""

    prompt_ids: list[int]
    answer_ids: list[int]
    boundaries: list[int]  # positions in the prompt and this answer
    remaining: list[list[float]]


class _Row(NamedTuple):
    """The answers to one prompt, and the truth about its study."""

    answers: list[_Answer]
    images: list[int]
    present: list[float]
    change: list[int]


class ReportBatches:
    """The batches of stage 2. Each is a function of the seed and the step, so a resumed run gets the same batches."""

    def __init__(
        self, pool: Pool, processor: Maira2Processor, seed: int, batch_size: int, answers_per_study: int = 1
    ) -> None:
        self.pool, self.processor, self.seed = pool, processor, seed
        self.batch_size, self.answers_per_study = batch_size, answers_per_study
        self._space = processor.tokenizer.convert_tokens_to_ids("▁")
        self._by_length = self._buckets()

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> ReportBatch:
        """One process's part of a step's batch; the parts of all processes have about the same length."""
        rng = np.random.default_rng([self.seed, 2, step])
        sizes = np.array([len(bucket) for bucket in self._by_length], dtype=np.float64)
        bucket = self._by_length[int(rng.choice(len(sizes), p=sizes / sizes.sum()))]
        grounded = bool(rng.random() < _GROUNDED_SHARE)
        own = np.random.default_rng([self.seed, 3, step, rank])
        indices = own.choice(bucket, min(self.batch_size // world_size, len(bucket)), replace=False)
        rows = [self._row(self.pool.studies[int(i)], grounded, own) for i in indices]
        return _collate(rows, self.processor.tokenizer.pad_token_id)

    def _buckets(self) -> list[np.ndarray]:
        """Study indices, bucketed by number of images and of concepts: batches of one bucket need little padding."""
        keys: dict[tuple[int, int], list[int]] = {}
        for i, study in enumerate(self.pool.studies):
            keys.setdefault((len(study.images), min(len(study.recipe.state), 4) // 2), []).append(i)
        return [np.array(indices) for _, indices in sorted(keys.items())]

    def _row(self, study: PooledStudy, grounded: bool, rng: np.random.Generator) -> _Row:
        recipe = study.recipe
        truth = visible_labels(recipe.state, recipe.prior)
        present = [float(truth[name].positive) for name in VISIBLE]
        findings, sentences = self._compose(study, rng)
        located = [sentence for sentence in sentences if sentence.boxes]
        if located and rng.random() < _PHRASE_SHARE:
            chosen = located[int(rng.integers(len(located)))]
            phrase = findings[chosen.start : chosen.end]
            prompt = PhraseGroundingPrompt(_NO_IMAGE, phrase, report.grounded_text(findings, (chosen,)))
            return _Row([self._answer(prompt)], [study.frontal], present, [-100] * len(VISIBLE))
        prompt, answers = self._findings_prompt(study, grounded, rng), []
        for k in range(self.answers_per_study):
            findings, sentences = (findings, sentences) if k == 0 else self._compose(study, rng)
            answer = report.grounded_text(findings, sentences) if grounded else findings
            starts = sentence_starts(findings, sentences, grounded=grounded)
            told = replace(prompt, assistant_text=answer)
            answers.append(self._answer(told, starts, still_to_say(sentences)))
        change = [-100 if recipe.prior is None else _change_class(truth[name].change) for name in VISIBLE]
        return _Row(answers, study.images, present, change)

    def _compose(self, study: PooledStudy, rng: np.random.Generator) -> tuple[str, tuple[SentenceLabel, ...]]:
        return report.compose(study.recipe.state, study.recipe.prior, int(rng.integers(2**31)), study.boxes)

    def _answer(
        self, prompt: Prompt, sentence_starts: Sequence[int] = (), remaining: list[list[float]] | None = None
    ) -> _Answer:
        rendered = self.processor.render(prompt).expand_images(
            self.processor.image_token, self.processor.n_image_tokens
        )
        encoding = self.processor.tokenizer(rendered.text, return_offsets_mapping=True)
        ids, ends = encoding["input_ids"], np.array(encoding["offset_mapping"])[:, 1]
        is_answer = np.isin(
            token_kinds(rendered.character_kinds, encoding["offset_mapping"]), (TokenKind.FINDINGS, TokenKind.END)
        )
        first = int(is_answer.argmax())
        if ids[first - 1] == self._space:  # the space before an answer that starts with a tag is a token of its own
            first -= 1
        text_start = rendered.text.rindex(prompt.assistant_text or "")
        boundaries = [int(np.argmax(ends > text_start + start)) - 1 for start in sentence_starts]
        return _Answer(ids[:first], ids[first:], boundaries, remaining or [])

    def _findings_prompt(self, study: PooledStudy, grounded: bool, rng: np.random.Generator) -> FindingsPrompt:
        """The findings prompt with newly worded sections, each of which may be left out."""
        recipe = study.recipe
        comparison = "none" if recipe.prior is None else "prior"
        request = requests.write_request(recipe.indication, technique_of(recipe), comparison, rng)
        prior_report = None
        if recipe.prior is not None and rng.random() < 0.4:
            prior_report, _ = report.compose(recipe.prior, None, int(rng.integers(2**31)))
        given = rng.random(3) < 0.9
        return FindingsPrompt(
            _NO_IMAGE,
            lateral=None if study.lateral is None else _NO_IMAGE,
            prior=None if study.prior_frontal is None else _NO_IMAGE,
            indication=request.indication if given[0] else None,
            technique=request.technique if given[1] else None,
            comparison=request.comparison if given[2] else None,
            prior_report=prior_report,
            grounded=grounded,
        )


def sentence_starts(findings: str, sentences: Sequence[SentenceLabel], *, grounded: bool) -> list[int]:
    """Characters of the answer at which its sentences start, then the answer's length."""
    if not grounded:
        return [*(sentence.start for sentence in sentences), len(findings)]
    lengths = [len(report.grounded_text(findings, (sentence,))) for sentence in sentences]
    return [0, *(int(end) for end in np.cumsum(lengths))]


def still_to_say(sentences: Sequence[SentenceLabel]) -> list[list[float]]:
    """What is still to be said before each sentence, and at the end: positive concepts, then removed ones."""
    remaining = [[0.0] * (2 * len(VISIBLE))]
    for sentence in reversed(sentences):
        now = list(remaining[0])
        for name, label in sentence.labels.items():
            if label.positive or label.change == "removed":
                now[VISIBLE.index(name) + (0 if label.positive else len(VISIBLE))] = 1.0
        remaining.insert(0, now)
    return remaining


def _change_class(change: Change | None) -> int:
    """0 for no change, then the order of ``CHANGES``."""
    return 0 if change is None else 1 + CHANGES.index(change)


def _collate(rows: Sequence[_Row], pad_id: int) -> ReportBatch:
    lengths = [len(row.answers[0].prompt_ids) + sum(len(answer.answer_ids) for answer in row.answers) for row in rows]
    ids = torch.full((len(rows), max(lengths)), pad_id, dtype=torch.long)
    positions, segments = torch.zeros_like(ids), torch.full_like(ids, -1)
    predicted_from: list[tuple[int, int]] = []
    targets: list[int] = []
    boundaries: list[tuple[int, int]] = []
    for i, row in enumerate(rows):
        prompt = row.answers[0].prompt_ids
        n_prompt = start = len(prompt)
        ids[i, :start], positions[i, :start], segments[i, :start] = torch.tensor(prompt), torch.arange(start), 0
        for k, answer in enumerate(row.answers, start=1):
            assert answer.prompt_ids == prompt, "answers of one row have one prompt"
            end = start + len(answer.answer_ids)
            ids[i, start:end], segments[i, start:end] = torch.tensor(answer.answer_ids), k
            positions[i, start:end] = torch.arange(n_prompt, n_prompt + end - start)
            predicted_from += [(i, n_prompt - 1), *((i, at) for at in range(start, end - 1))]
            targets += answer.answer_ids
            boundaries += [(i, at if at < n_prompt else at - n_prompt + start) for at in answer.boundaries]
            start = end
    return ReportBatch(
        ids,
        positions,
        segments,
        torch.tensor([image for row in rows for image in row.images]),
        torch.tensor([len(row.answers[0].prompt_ids) - 1 for row in rows]),
        torch.tensor(predicted_from),
        torch.tensor(targets),
        torch.tensor([row.present for row in rows]),
        torch.tensor([row.change for row in rows]),
        torch.tensor(boundaries, dtype=torch.long).view(-1, 2),
        torch.tensor([now for row in rows for answer in row.answers for now in answer.remaining]).view(
            -1, 2 * len(VISIBLE)
        ),
    )
