"""Stage 2 of the training: the projector and the language model learn to report, on a frozen vision tower.

1. Each step draws studies of about the same prompt length, words their reports anew and picks a task for each:
   findings, grounded findings, or phrase grounding.
2. The loss is the language model's, on the answer alone. The tower's features come from a cache.
3. Two auxiliary heads help it plan. One reads the last prompt token, half way up, and learns what is present and how
   it changed: the model gathers its evidence, both images included, before it speaks. The other reads the token before
   each sentence, a layer below the top, and learns what is still to be said: without it the model takes thousands of
   steps to stop repeating itself. Both are thrown away afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sae_lens_maira.data.study import SentenceLabel
from sae_lens_maira.maira2.processing import Maira2Processor
from sae_lens_maira.maira2.prompts import FindingsPrompt, PhraseGroundingPrompt, Prompt, TokenKind
from sae_lens_maira.maira2.tokenization import token_kinds
from sae_lens_maira.phantom import report, requests
from sae_lens_maira.phantom.concepts import CHANGES, VISIBLE, visible_labels
from sae_lens_maira.phantom.generate import technique_of
from sae_lens_maira.phantom.pool import Pool, PooledStudy

_GROUNDED_SHARE, _PHRASE_SHARE = 0.36, 0.08
_NO_IMAGE = np.zeros((1, 1), np.uint8)  # prompts are only rendered here; the pixels come from the cache
N_CHANGES = len(CHANGES) + 1
"""Classes of the auxiliary head's change: none, then `CHANGES`."""


class ReportBatch(NamedTuple):
    """One step's input, padded on the right; `images` are rows of the feature cache, in the placeholders' order."""

    input_ids: Tensor  # (batch, sequence)
    labels: Tensor  # (batch, sequence), -100 outside of the answer
    images: Tensor  # (n_images,)
    answer_start: Tensor  # (batch,) position of the last prompt token
    present: Tensor  # (batch, n_concepts) 0 or 1
    change: Tensor  # (batch, n_concepts) class, -100 where it is not asked for
    boundaries: Tensor  # (n_boundaries, 2) row and position of the token before each sentence, and before the end
    remaining: Tensor  # (n_boundaries, 2 * n_concepts) 0 or 1: positive concepts, then removed ones, not yet told of


class ReportBatches:
    """The batches of stage 2, each a function of the seed and the step: a resumed run sees what it would have seen."""

    def __init__(self, pool: Pool, processor: Maira2Processor, seed: int, batch_size: int) -> None:
        self.pool, self.processor, self.seed, self.batch_size = pool, processor, seed, batch_size
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
        rows = [self._encode(self.pool.studies[int(i)], grounded, own) for i in indices]
        return _collate(rows, self.processor.tokenizer.pad_token_id)

    def _buckets(self) -> list[np.ndarray]:
        """Study indices by number of images, then by how much there is to say: batches of a bucket pad little."""
        keys: dict[tuple[int, int], list[int]] = {}
        for i, study in enumerate(self.pool.studies):
            n_images = 1 + (study.lateral is not None) + (study.prior is not None)
            keys.setdefault((n_images, min(len(study.recipe.state), 4) // 2), []).append(i)
        return [np.array(indices) for _, indices in sorted(keys.items())]

    def _encode(self, study: PooledStudy, grounded: bool, rng: np.random.Generator) -> dict[str, Any]:
        recipe = study.recipe
        seed = int(rng.integers(2**31))
        findings, sentences = report.compose(recipe.state, recipe.prior, seed, study.boxes)
        located = [sentence for sentence in sentences if sentence.boxes]
        is_phrase = bool(located) and bool(rng.random() < _PHRASE_SHARE)
        if is_phrase:
            chosen = located[int(rng.integers(len(located)))]
            phrase = findings[chosen.start : chosen.end]
            prompt: Prompt = PhraseGroundingPrompt(_NO_IMAGE, phrase, report.grounded_text(findings, (chosen,)))
            images = [study.frontal]
        else:
            answer = report.grounded_text(findings, sentences) if grounded else findings
            prompt, images = self._findings_prompt(study, answer, grounded, rng)
        rendered = self.processor.render(prompt).expand_images(
            self.processor.image_token, self.processor.n_image_tokens
        )
        encoding = self.processor.tokenizer(rendered.text, return_offsets_mapping=True)
        ids, ends = np.array(encoding["input_ids"]), np.array(encoding["offset_mapping"])[:, 1]
        kinds = token_kinds(rendered.character_kinds, encoding["offset_mapping"])
        truth = visible_labels(recipe.state, recipe.prior)
        has_change = recipe.prior is not None and not is_phrase
        row = {
            "ids": ids,
            "is_answer": self._answer_mask(ids, kinds),
            "images": images,
            "present": [float(truth[name].positive) for name in VISIBLE],
            "change": [_change_class(truth[name].change) if has_change else -100 for name in VISIBLE],
            "boundaries": [],
            "remaining": [],
        }
        if not is_phrase:
            starts = sentence_starts(findings, sentences, grounded=grounded)
            first = rendered.text.rindex(prompt.assistant_text or "")
            row["boundaries"] = [int(np.argmax(ends > first + start)) - 1 for start in starts]
            row["remaining"] = still_to_say(sentences)
        return row

    def _answer_mask(self, ids: np.ndarray, kinds: np.ndarray) -> np.ndarray:
        """What the model has to say: the answer, its end, and a space of its own where the answer starts with a tag."""
        mask = np.isin(kinds, (TokenKind.FINDINGS, TokenKind.END))
        first = int(mask.argmax())
        mask[first - 1] = ids[first - 1] == self._space
        return mask

    def _findings_prompt(
        self, study: PooledStudy, answer: str, grounded: bool, rng: np.random.Generator
    ) -> tuple[FindingsPrompt, list[int]]:
        """The findings prompt with newly worded sections, any of which may be missing, and its images' rows."""
        recipe = study.recipe
        comparison = "none" if recipe.prior is None else "prior"
        request = requests.write_request(recipe.indication, technique_of(recipe), comparison, rng)
        prior_report = None
        if recipe.prior is not None and rng.random() < 0.4:
            prior_report, _ = report.compose(recipe.prior, None, int(rng.integers(2**31)))
        given = rng.random(3) < 0.9
        prompt = FindingsPrompt(
            _NO_IMAGE,
            lateral=None if study.lateral is None else _NO_IMAGE,
            prior=None if study.prior is None else _NO_IMAGE,
            indication=request.indication if given[0] else None,
            technique=request.technique if given[1] else None,
            comparison=request.comparison if given[2] else None,
            prior_report=prior_report,
            grounded=grounded,
            assistant_text=answer,
        )
        return prompt, [row for row in (study.frontal, study.lateral, study.prior) if row is not None]


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


def _collate(rows: list[dict[str, Any]], pad_id: int) -> ReportBatch:
    width = max(len(row["ids"]) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    labels = torch.full((len(rows), width), -100, dtype=torch.long)
    for i, row in enumerate(rows):
        tokens = torch.from_numpy(row["ids"])
        ids[i, : len(tokens)] = tokens
        labels[i, : len(tokens)] = torch.where(torch.from_numpy(row["is_answer"]), tokens, -100)
    return ReportBatch(
        ids,
        labels,
        torch.tensor([image for row in rows for image in row["images"]]),
        (labels != -100).float().argmax(dim=1) - 1,
        torch.tensor([row["present"] for row in rows]),
        torch.tensor([row["change"] for row in rows]),
        torch.tensor([(i, at) for i, row in enumerate(rows) for at in row["boundaries"]], dtype=torch.long).view(-1, 2),
        torch.tensor([now for row in rows for now in row["remaining"]]).view(-1, 2 * len(VISIBLE)),
    )


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

    The same as `model(input_ids, pixel_values, labels=labels).loss`, but from cached features, with logits only where
    they are wanted, and without a padding mask: padding is on the right, where causal attention does not look.
    """
    core = model.model
    embeddings = core.language_model.embed_tokens(batch.input_ids)
    images = core.multi_modal_projector(features[batch.images].float())
    places = (batch.input_ids == model.config.image_token_index)[..., None].expand_as(embeddings)
    embeddings = embeddings.masked_scatter(places, images.flatten(0, 1))
    output = core.language_model(inputs_embeds=embeddings, use_cache=False, output_hidden_states=True)
    wanted = batch.labels[:, 1:] != -100
    logits = model.lm_head(output.last_hidden_state[:, :-1][wanted])
    language = F.cross_entropy(logits, batch.labels[:, 1:][wanted])

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
