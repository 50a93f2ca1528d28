"""Counterfactual pairs: the same patient, exposure and request, with a concept and without it.

Every row ends with the same *recital*: one sentence per visible concept, saying that it is present. The log probability
that the model gives to each sentence tells what the images make it believe, for all concepts in one forward pass.
Generated reports would be read by the exact grammar instead; that takes about a hundred times as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_maira.data.study import LazyImage, Study, TokenKind
from sae_lens_maira.hooked import HookedVisionLanguageModel
from sae_lens_maira.phantom.generate import PhantomStudy, render
from sae_lens_maira.phantom.words.grammar import Claim, sentences
from sae_lens_maira.phantom.world.concepts import CONCEPTS, VISIBLE, Appearance
from sae_lens_maira.phantom.world.contexts import sample_unrelated

_BATCH = 16
_ALSO = 2
"""Other concepts that a patient may have."""
_HIDING = ("effusion", "consolidation", "atelectasis")
"""Of these, one hides another on the same side."""


class Pair(NamedTuple):
    """Two studies that differ in one concept: ``base`` without it and ``source`` with it."""

    concept: str
    base: Study
    source: Study


@dataclass(frozen=True)
class Drawn:
    """An image that is drawn already, for studies that are read many times."""

    pixels: np.ndarray

    def open(self) -> Image.Image:
        return Image.fromarray(self.pixels)


@dataclass(frozen=True)
class Batch:
    """Pairs as the model reads them.

    Args:
        concepts: of each pair, by index in ``VISIBLE``.
        inputs: the model's inputs for the studies without the concept.
        base: activations at the hook point without the concept.
        source: with it, at the same positions.
        is_prompt: tokens before the recital.
        is_read: tokens whose strongest activation is a latent's value.
        base_scores: log probability of each concept's sentence without the concept.
        source_scores: with it.
        targets: token that each position predicts.
        sentence: concept whose sentence each position predicts, by index in ``VISIBLE``; -1 elsewhere.
    """

    concepts: Int[np.ndarray, " n_pairs"]
    inputs: Any
    base: Float[Tensor, "n_pairs context d_in"]
    source: Float[Tensor, "n_pairs context d_in"]
    is_prompt: Bool[Tensor, "n_pairs context"]
    is_read: Bool[Tensor, "n_pairs context"]
    base_scores: Float[np.ndarray, "n_pairs n_visible"]
    source_scores: Float[np.ndarray, "n_pairs n_visible"]
    targets: Int[Tensor, "n_pairs context"]
    sentence: Int[Tensor, "n_pairs context"]


@cache
def recital() -> str:
    """One sentence per visible concept, in the order of ``VISIBLE``."""
    return " ".join(sentences(Claim(name, "present", None))[0] for name in VISIBLE)


def make_pairs(n_per_concept: int, seed: int) -> list[Pair]:
    """Pairs of new patients for every visible concept; a patient may also have up to two other concepts.

    Args:
        n_per_concept: pairs of each concept.
        seed: determines patients and other concepts.
    """
    made: list[Pair] = []
    for number, name in enumerate(VISIBLE):
        for index in range(n_per_concept):
            rng = np.random.default_rng([seed, number, index])
            state = {other: look for other, look in sample_unrelated(rng).items() if not _excluded(other, name)}
            state = dict(list(state.items())[:_ALSO])
            extents = CONCEPTS[name].extents
            look = Appearance(extents[int(rng.integers(len(extents)))])
            anatomy, exposure = (int(rng.integers(2**31)) for _ in range(2))
            base = render(state, anatomy, seed=exposure)
            source = render({**state, name: look}, anatomy, seed=exposure)
            made.append(Pair(name, _recited(base), _recited(source)))
    return made


def read_pairs(
    model: HookedVisionLanguageModel, pairs: Sequence[Pair], hook_name: str, kinds: Sequence[int]
) -> list[Batch]:
    """Run the model on pairs.

    Args:
        model: with a policy that keeps every token.
        pairs: as :func:`make_pairs` gives them.
        hook_name: the hook point.
        kinds: kinds of the tokens on which latents are read.
    """
    starts = range(0, len(pairs), _BATCH)
    return [
        _read(model, pairs[start : start + _BATCH], hook_name, kinds)
        for start in tqdm(starts, desc="pairs", unit_scale=_BATCH)
    ]


@torch.no_grad()
def sentence_scores(
    logits: Float[Tensor, "n_pairs context d_vocab"],
    targets: Int[Tensor, "n_pairs context"],
    sentence: Int[Tensor, "n_pairs context"],
) -> Float[np.ndarray, "n_pairs n_visible"]:
    """Log probability of each concept's sentence.

    Args:
        logits: at each position, for the next token.
        targets: the next token.
        sentence: the concept that the next token belongs to, or -1.
    """
    scores = torch.zeros(len(logits), len(VISIBLE), dtype=torch.float64)
    where = sentence >= 0
    chosen = torch.log_softmax(logits[where].float(), dim=-1).gather(1, targets[where][:, None])[:, 0]
    rows = torch.nonzero(where)[:, 0]
    return scores.index_put_((rows, sentence[where]), chosen.double(), accumulate=True).numpy()


def _excluded(other: str, name: str) -> bool:
    """Whether a patient of a pair may not also have another concept."""
    ours, theirs = CONCEPTS[name], CONCEPTS[other]
    hides = ours.side == theirs.side and all(c.name.startswith(_HIDING) for c in (ours, theirs))
    return ours.family == theirs.family or hides


def _recited(study: PhantomStudy) -> Study:
    images: dict[str, LazyImage] = {"frontal": Drawn(study.frontal.pixels())}
    if study.lateral is not None:
        images["lateral"] = Drawn(study.lateral.pixels())
    texts = {"indication": study.indication, "technique": study.technique, "comparison": study.comparison}
    plain: Any = {**images, **texts}
    return Study(study.study_id, study.patient_id, findings=recital(), labels=study.labels, **plain)


@torch.no_grad()
def _read(model: HookedVisionLanguageModel, pairs: Sequence[Pair], hook_name: str, kinds: Sequence[int]) -> Batch:
    found: list[Any] = []
    for side in ("base", "source"):
        studies = [getattr(pair, side) for pair in pairs]
        tokens = model.to_tokens(studies)
        inputs = model.full_inputs(tokens)
        seen: list[Tensor] = []

        def keep(value: Tensor, hook: Any, seen: list[Tensor] = seen) -> None:
            del hook
            seen.append(value.detach().clone())

        logits = model.run_with_hooks(inputs, fwd_hooks=[(hook_name, keep)], return_type="logits")
        found.append((tokens, inputs, seen[0], logits))
    tokens, inputs, base, logits = found[0]
    kinds_of, targets, sentence = _layout(model, tokens)
    return Batch(
        concepts=np.array([VISIBLE.index(pair.concept) for pair in pairs]),
        inputs=inputs,
        base=base,
        source=found[1][2],
        is_prompt=(kinds_of >= 0) & (kinds_of != int(TokenKind.FINDINGS)) & (kinds_of != int(TokenKind.END)),
        is_read=torch.isin(kinds_of, torch.tensor(list(kinds))),
        base_scores=sentence_scores(logits, targets, sentence),
        source_scores=sentence_scores(found[1][3], targets, sentence),
        targets=targets,
        sentence=sentence,
    )


def _layout(model: HookedVisionLanguageModel, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Kind of each token (-1 at padding), next token, and the concept that the next token belongs to (or -1)."""
    kinds = torch.full(tokens.shape, -1)
    sentence = torch.full(tokens.shape, -1)
    targets = torch.zeros_like(tokens)
    targets[:, :-1] = tokens[:, 1:]
    for row, ids in enumerate(tokens.tolist()):
        own = model.reader.encode(model.row_vocabulary.study_index(ids[0]))[1].kinds
        kinds[row, : len(own)] = torch.from_numpy(own.astype(np.int64))
        places = torch.nonzero(kinds[row] == int(TokenKind.FINDINGS))[:, 0].tolist()
        ends = [place for place in places if "." in model.tokenizer.row_to_texts([ids[place]])[0]]
        assert len(ends) == len(VISIBLE), "the recital has one sentence per concept"
        number = 0
        for place in places:
            sentence[row, place - 1] = number
            number += place == ends[number]
    return kinds, targets, sentence
