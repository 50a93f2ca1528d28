"""Disentanglement: latents exchanged between two renders that differ in one concept (after RAVEL, Huang et al. 2024).

1. *Choice.* For each concept, the latents that differ most between the two renders of other patients, weighted by how
   much of a latent's difference is this concept's.
2. *Exchange.* At every token of the prompt, the chosen latents of the study without the concept are set to those of the
   study with it; the rest, and what the dictionary does not reconstruct, stay.
3. *Cause* is the share of the full effect, from one study to the other, on the log probability of the concept's
   sentence, between 0 and 1. *Isolation* is 1 minus the mean shift of the sentences of other families, each as a share
   (at most 1) of that sentence's own full effect. The score is their mean, as in SAEBench.
4. *Control.* As many other latents, each of which fires about as often as one of the chosen ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_maira.concepts.dictionaries.absorption import best_feature
from sae_lens_maira.concepts.dictionaries.pairs import Batch, sentence_scores
from sae_lens_maira.hooked import HookedVisionLanguageModel
from sae_lens_maira.phantom.world.concepts import CONCEPTS, VISIBLE

MIN_EFFECT = 1.0
"""Full effect in nats below which a pair is left out: the images do not make the model say the concept."""
_NEIGHBORS = 20


class Disentanglement(NamedTuple):
    """Means over pairs.

    Args:
        cause: share of the full effect on the concept's own sentence.
        isolation: 1 - shift of the sentences of other families.
        n_pairs: pairs with a full effect that is large enough.
    """

    cause: float
    isolation: float
    n_pairs: int

    @property
    def score(self) -> float:
        """Mean of cause and isolation."""
        return (self.cause + self.isolation) / 2


class Detection(NamedTuple):
    """How the best latent of each concept detects what is drawn.

    Args:
        sensitivity: share of studies with the concept in which its latent fires.
        purity: share of the studies in which it fires that show the concept, mean over concepts.
        flips: share of pairs in which it fires with the concept and not without it.
    """

    sensitivity: float
    purity: float
    flips: float


@torch.no_grad()
def concept_latents(sae: Any, batches: Sequence[Batch], n: int) -> Int[np.ndarray, "n_visible n"]:
    """The latents that carry each concept, best first.

    A latent's energy for a concept is the mean over pairs of its squared difference, summed over the prompt, times the
    squared norm of its decoder row. Its weight is that energy times its share in the sum over all concepts.

    Args:
        sae: the dictionary.
        batches: pairs to choose on.
        n: latents per concept.
    """
    energy = torch.zeros(len(VISIBLE), int(sae.cfg.d_sae))
    counts = torch.zeros(len(VISIBLE))
    for batch in batches:
        difference = (sae.encode(batch.source) - sae.encode(batch.base)) * batch.is_prompt[..., None]
        index = torch.from_numpy(batch.concepts)
        energy.index_add_(0, index, difference.pow(2).sum(dim=1))
        counts += torch.bincount(index, minlength=len(VISIBLE))
    energy *= sae.W_dec.pow(2).sum(dim=1)
    energy /= counts[:, None].clamp(min=1)
    weight = energy.pow(2) / energy.sum(dim=0).clamp(min=1e-12)
    return weight.argsort(dim=1, descending=True, stable=True)[:, :n].numpy()


def matched_latents(
    chosen: Int[np.ndarray, "n_visible n"], density: Float[np.ndarray, " d_sae"], seed: int
) -> Int[np.ndarray, "n_visible n"]:
    """For each chosen latent, a random other one among those that fire about as often.

    Args:
        chosen: latents of each concept.
        density: share of tokens on which each latent fires.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    matched = np.empty_like(chosen)
    for row, own in enumerate(chosen):
        taken = set(own.tolist())
        for column, latent in enumerate(own):
            order = np.argsort(np.abs(density - density[latent]), kind="stable")
            near = [int(other) for other in order if int(other) not in taken][:_NEIGHBORS]
            matched[row, column] = near[int(rng.integers(len(near)))]
            taken.add(int(matched[row, column]))
    return matched


@torch.no_grad()
def disentanglement(
    model: HookedVisionLanguageModel,
    sae: Any,
    batches: Sequence[Batch],
    hook_name: str,
    latents: Int[np.ndarray, "n_visible n"],
) -> Disentanglement:
    """Exchange latents in every pair and read all sentences.

    Args:
        model: as it read the pairs.
        sae: the dictionary.
        batches: pairs to score on.
        hook_name: where latents are exchanged.
        latents: of each concept.
    """
    scale = full_effects(batches)
    causes, isolations = [], []
    for batch in batches:
        scores = exchanged_scores(model, sae, batch, hook_name, latents)
        for row, concept in enumerate(batch.concepts):
            effect = batch.source_scores[row] - batch.base_scores[row]
            if effect[concept] < MIN_EFFECT:
                continue
            shift = scores[row] - batch.base_scores[row]
            others = other_families(int(concept)) & (scale >= MIN_EFFECT)
            causes.append(float(np.clip(shift[concept] / effect[concept], 0, 1)))
            isolations.append(1 - float(np.clip(np.abs(shift[others]) / scale[others], 0, 1).mean()))
    if not causes:
        return Disentanglement(float("nan"), float("nan"), 0)
    return Disentanglement(float(np.mean(causes)), float(np.mean(isolations)), len(causes))


def exchanged_scores(
    model: HookedVisionLanguageModel,
    sae: Any,
    batch: Batch,
    hook_name: str,
    latents: Int[np.ndarray, "n_visible n"],
) -> Float[np.ndarray, "n_pairs n_visible"]:
    """Log probability of each sentence after the exchange in each pair of a batch."""
    mask = torch.zeros(len(batch.concepts), int(sae.cfg.d_sae))
    mask.scatter_(1, torch.from_numpy(latents[batch.concepts]), 1.0)
    source = sae.encode(batch.source)

    def exchange(value: Tensor, hook: Any) -> Tensor:
        del hook
        own = sae.encode(value)
        wanted = own + (source - own) * mask[:, None]
        change = (sae.decode(wanted) - sae.decode(own)) * batch.is_prompt[..., None]
        return value + change

    logits = model.run_with_hooks(batch.inputs, fwd_hooks=[(hook_name, exchange)], return_type="logits")
    return sentence_scores(logits, batch.targets, batch.sentence)


def full_effects(batches: Sequence[Batch]) -> Float[np.ndarray, " n_visible"]:
    """Mean change of each concept's log probability in its own pairs, from without to with."""
    concepts = np.concatenate([batch.concepts for batch in batches])
    effects = np.concatenate([batch.source_scores - batch.base_scores for batch in batches])
    return np.array([effects[concepts == i, i].mean() if (concepts == i).any() else 0 for i in range(len(VISIBLE))])


def other_families(concept: int) -> Bool[np.ndarray, " n_visible"]:
    """Which visible concepts belong to another family than the given one."""
    family = CONCEPTS[VISIBLE[concept]].family
    return np.array([CONCEPTS[name].family != family for name in VISIBLE])


@torch.no_grad()
def read_values(sae: Any, batches: Sequence[Batch]) -> tuple[np.ndarray, np.ndarray]:
    """Each render's strongest activation of each latent, without and with the concept: two arrays (n_pairs, d_sae)."""
    sides: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for batch in batches:
        for values, side in zip((batch.base, batch.source), sides, strict=True):
            latents = sae.encode(values) * batch.is_read[..., None]
            side.append(latents.amax(dim=1).numpy())
    return np.concatenate(sides[0]), np.concatenate(sides[1])


def detection(sae: Any, choosing: Sequence[Batch], scoring: Sequence[Batch]) -> Detection:
    """Sensitivity and purity of each concept's latent, which is chosen with its threshold on other patients.

    Args:
        sae: the dictionary.
        choosing: pairs to choose on.
        scoring: pairs to score on.
    """
    base, source = read_values(sae, choosing)
    concepts = np.concatenate([batch.concepts for batch in choosing])
    values = np.concatenate([source, base])
    base, source = read_values(sae, scoring)
    scored = np.concatenate([batch.concepts for batch in scoring])
    fires_on, pure, flips = [], [], []
    for concept in np.unique(scored):
        positive = np.concatenate([concepts == concept, np.zeros(len(concepts), dtype=bool)])
        latent = best_feature(values, positive, np.arange(values.shape[1]))
        with_it, without = (side[:, latent.latent] > latent.threshold for side in (source, base))
        own = scored == concept
        fires_on.append(float(with_it[own].mean()))
        flips.append(float((with_it & ~without)[own].mean()))
        n_fires = int(with_it.sum() + without.sum())
        pure.append(float(with_it[own].sum()) / n_fires if n_fires else 0.0)
    return Detection(float(np.mean(fires_on)), float(np.mean(pure)), float(np.mean(flips)))
