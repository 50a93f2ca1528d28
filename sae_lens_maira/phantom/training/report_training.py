"""Stage 2 of the training: the projector and the language model learn to report, on a frozen vision tower.

1. Each step draws studies of about the same prompt length and picks a task for each: findings, grounded findings, or
   phrase grounding. Several answers to one prompt, each worded and ordered anew, are learnt in one pass: the prompt,
   most of the cost, is computed once, and no answer sees another.
2. The loss is the language model's, on the answer alone. The tower's features come from a cache.
3. Two auxiliary heads help it plan. One reads the last prompt token, half way up, and learns what is present and how
   it changed: the model gathers its evidence, both images included, before it speaks. The other reads the token before
   each sentence, a layer below the top, and learns what is still to be said: without it the model takes thousands of
   steps to stop repeating itself. Both are thrown away afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sae_lens_maira.data.study import SentenceLabel, TokenKind
from sae_lens_maira.maira2.processing import Maira2Processor
from sae_lens_maira.maira2.prompts import FindingsPrompt, PhraseGroundingPrompt, Prompt
from sae_lens_maira.maira2.tokenization import token_kinds
from sae_lens_maira.phantom.generate import technique_of
from sae_lens_maira.phantom.training.pool import Pool, PooledStudy
from sae_lens_maira.phantom.words import report, requests
from sae_lens_maira.phantom.world.concepts import CHANGES, VISIBLE, visible_labels

_GROUNDED_SHARE, _PHRASE_SHARE = 0.36, 0.08
_NO_IMAGE = np.zeros((1, 1), np.uint8)  # prompts are only rendered here; the pixels come from the cache
N_CHANGES = len(CHANGES) + 1
"""Classes of the auxiliary head's change: none, then `CHANGES`."""


class ReportBatch(NamedTuple):
    """One step's input. A row is a prompt, several answers to it one after the other, and padding.

    `images` are rows of the feature cache, in the placeholders' order. Targets and boundaries are given by the row and
    the position whose output is meant; several answers share the last prompt token.
    """

    input_ids: Tensor  # (batch, sequence)
    position_ids: Tensor  # (batch, sequence); each answer goes on where the prompt ends
    segments: Tensor  # (batch, sequence); 0 in the prompt, k in answer k, -1 in padding
    images: Tensor  # (n_images,)
    answer_start: Tensor  # (batch,) position of the last prompt token
    predicted_from: Tensor  # (n_targets, 2) row and position
    targets: Tensor  # (n_targets,) token ids
    present: Tensor  # (batch, n_concepts) 0 or 1
    change: Tensor  # (batch, n_concepts) class, -100 where it is not asked for
    boundaries: Tensor  # (n_boundaries, 2) row and position of the token before each sentence, and before the end
    remaining: Tensor  # (n_boundaries, 2 * n_concepts) 0 or 1: positive concepts, then removed ones, not yet told of


class _Answer(NamedTuple):
    """One rendered prompt with its answer, as tokens."""

    prompt_ids: list[int]
    answer_ids: list[int]
    boundaries: list[int]  # positions in the prompt and this answer
    remaining: list[list[float]]


class _Row(NamedTuple):
    """Answers to one prompt, and what is true of its study."""

    answers: list[_Answer]
    images: list[int]
    present: list[float]
    change: list[int]


class ReportBatches:
    """The batches of stage 2, each a function of the seed and the step: a resumed run sees what it would have seen."""

    def __init__(
        self, pool: Pool, processor: Maira2Processor, seed: int, batch_size: int, answers_per_study: int = 1
    ) -> None:
        self.pool, self.processor, self.seed = pool, processor, seed
        self.batch_size, self.answers_per_study = batch_size, answers_per_study
        self._space = processor.tokenizer.convert_tokens_to_ids("▁")
        self._by_length = self._buckets()

    def batch(self, step: int, rank: int = 0, n_shares: int = 1) -> ReportBatch:
        """Share `rank` of the batch of a step; all shares have about the same length."""
        rng = np.random.default_rng([self.seed, 2, step])
        sizes = np.array([len(bucket) for bucket in self._by_length], dtype=np.float64)
        bucket = self._by_length[int(rng.choice(len(sizes), p=sizes / sizes.sum()))]
        grounded = bool(rng.random() < _GROUNDED_SHARE)
        own = np.random.default_rng([self.seed, 3, step, rank])
        indices = own.choice(bucket, min(self.batch_size // n_shares, len(bucket)), replace=False)
        rows = [self._row(self.pool.studies[int(i)], grounded, own) for i in indices]
        return _collate(rows, self.processor.tokenizer.pad_token_id)

    def _buckets(self) -> list[np.ndarray]:
        """Study indices by number of images, then by how much there is to say: batches of a bucket pad little."""
        keys: dict[tuple[int, int], list[int]] = {}
        for i, study in enumerate(self.pool.studies):
            n_images = 1 + (study.lateral is not None) + (study.prior is not None)
            keys.setdefault((n_images, min(len(study.recipe.state), 4) // 2), []).append(i)
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
        images = [row for row in (study.frontal, study.lateral, study.prior) if row is not None]
        change = [-100 if recipe.prior is None else _change_class(truth[name].change) for name in VISIBLE]
        return _Row(answers, images, present, change)

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
        if ids[first - 1] == self._space:  # a space of its own, where the answer starts with a tag
            first -= 1
        text_start = rendered.text.rindex(prompt.assistant_text or "")
        boundaries = [int(np.argmax(ends > text_start + start)) - 1 for start in sentence_starts]
        return _Answer(ids[:first], ids[first:], boundaries, remaining or [])

    def _findings_prompt(self, study: PooledStudy, grounded: bool, rng: np.random.Generator) -> FindingsPrompt:
        """The findings prompt with newly worded sections, any of which may be missing."""
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
            prior=None if study.prior is None else _NO_IMAGE,
            indication=request.indication if given[0] else None,
            technique=request.technique if given[1] else None,
            comparison=request.comparison if given[2] else None,
            prior_report=prior_report,
            grounded=grounded,
        )


def sentence_starts(findings: str, sentences: Sequence[SentenceLabel], *, grounded: bool) -> list[int]:
    """Where each sentence starts in the answer, and where the answer ends."""
    if not grounded:
        return [*(sentence.start for sentence in sentences), len(findings)]
    lengths = [len(report.grounded_text(findings, (sentence,))) for sentence in sentences]
    return [0, *(int(end) for end in np.cumsum(lengths))]


def still_to_say(sentences: Sequence[SentenceLabel]) -> list[list[float]]:
    """Before each sentence, and at the end: which concepts are yet to be called positive, then which removed."""
    remaining = [[0.0] * (2 * len(VISIBLE))]
    for sentence in reversed(sentences):
        now = list(remaining[0])
        for name, label in sentence.labels.items():
            if label.positive or label.change == "removed":
                now[VISIBLE.index(name) + (0 if label.positive else len(VISIBLE))] = 1.0
        remaining.insert(0, now)
    return remaining


def _change_class(change: str | None) -> int:
    return 0 if change is None else 1 + [str(c) for c in CHANGES].index(change)


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


def attention_mask(segments: Tensor) -> Tensor:
    """(batch, 1, sequence, sequence), True where a token may look: back, and at the prompt or its own answer only."""
    looking, seen = segments[:, :, None], segments[:, None, :]
    n = segments.shape[1]
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    return (causal & ((seen == 0) | (seen == looking)))[:, None]


class ReportHeads(nn.Module):
    """Linear read-outs of the language model's hidden states, for training only."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.present = nn.Linear(d_model, len(VISIBLE))
        self.change = nn.Linear(d_model, len(VISIBLE) * N_CHANGES)
        self.plan_norm = nn.LayerNorm(d_model)
        self.remaining = nn.Linear(d_model, 2 * len(VISIBLE))


def report_loss(model: Any, heads: ReportHeads, features: Tensor, batch: ReportBatch) -> tuple[Tensor, Tensor]:
    """The language model's loss on the answers, and the auxiliary loss.

    The same as the mean of `model(input_ids, pixel_values, labels=labels).loss` over each prompt with each of its
    answers alone, but from cached features, with each prompt computed once, and logits only where they are wanted.
    """
    core = model.model
    embeddings = core.language_model.embed_tokens(batch.input_ids)
    images = core.multi_modal_projector(features[batch.images].float())
    places = (batch.input_ids == model.config.image_token_index)[..., None].expand_as(embeddings)
    embeddings = embeddings.masked_scatter(places, images.flatten(0, 1))
    output = core.language_model(
        inputs_embeds=embeddings,
        position_ids=batch.position_ids,
        attention_mask=attention_mask(batch.segments),
        use_cache=False,
        output_hidden_states=True,
    )
    rows, positions = batch.predicted_from.unbind(-1)
    language = F.cross_entropy(model.lm_head(output.last_hidden_state[rows, positions]), batch.targets)

    n_layers = model.config.text_config.num_hidden_layers
    middle = output.hidden_states[(n_layers + 1) // 2]
    evidence = heads.norm(middle[torch.arange(len(middle)), batch.answer_start])
    auxiliary = 4.0 * F.binary_cross_entropy_with_logits(heads.present(evidence), batch.present)
    asked = batch.change != -100
    if asked.any():
        change = heads.change(evidence).view(*batch.change.shape, N_CHANGES)
        auxiliary = auxiliary + 4.0 * F.cross_entropy(change[asked], batch.change[asked])
    if len(batch.boundaries):
        rows, positions = batch.boundaries.unbind(-1)
        plan = heads.plan_norm(output.hidden_states[n_layers - 1][rows, positions])
        auxiliary = auxiliary + 12.0 * F.binary_cross_entropy_with_logits(heads.remaining(plan), batch.remaining)
    return language, auxiliary
