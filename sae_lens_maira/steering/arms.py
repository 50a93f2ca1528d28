"""The arms of an experiment: what is done to a concept's reports, by latents and by controls of the same norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_maira.hooked.dictionary import Dictionary
from sae_lens_maira.hooked.edits import Ablate, Add, AddDirection, Clamp, Edit
from sae_lens_maira.steering.choice import Contrast, sparse_fit

ABLATED = (1, 3, 8, 20)
"""Numbers of latents that are ablated together."""


@dataclass(frozen=True)
class Proposal:
    """Latents that may write a concept.

    Args:
        kind: ``latent``, ``latents``, ``random_dictionary`` or ``difference_of_means``.
        features: the latents; none for a direction.
        weights: of each latent, in its strengths, at a dose of 1.
    """

    kind: str
    features: tuple[int, ...]
    weights: tuple[float, ...]

    def edits(self, dose: float, hook: str, directions: Mapping[str, Float[Tensor, "n d_in"]], row: int) -> list[Edit]:
        """The edits at a multiple of the weights.

        Args:
            dose: the multiple.
            hook: the hook point.
            directions: of proposals that are no latents of the SAE: rows by the proposal's kind.
            row: the concept's row for proposals without latents.
        """
        if self.kind == "difference_of_means":
            return [AddDirection(directions[self.kind][row], dose, hook)]
        if self.kind == "random_dictionary":
            return [
                AddDirection(directions[self.kind][feature], dose * weight, hook)
                for feature, weight in zip(self.features, self.weights, strict=True)
            ]
        return [Add(feature, dose * weight, hook) for feature, weight in zip(self.features, self.weights, strict=True)]


@dataclass(frozen=True)
class Arm:
    """One way to steer one concept.

    Args:
        name: ``latent``, ``latents``, ``ablation_3``, ``suppression``, or a control's name.
        concept: the concept that it is meant to change.
        edits: what is edited.
        dose: multiple of the proposal's weights.
        proposal: its latents and weights.
    """

    name: str
    concept: str
    edits: tuple[Edit, ...]
    dose: float
    proposal: Proposal


def propose(
    dictionary: Dictionary, contrasts: Mapping[str, Contrast], concept: str, n_candidates: int, max_latents: int
) -> list[Proposal]:
    """Single latents and small groups that may write a concept.

    1. Single latents that fire more with the concept, and whose decoder rows point along the difference of means.
    2. Groups whose weighted sum comes closest to the difference of means, and to what it has beyond other concepts'.
    """
    own = contrasts[concept]
    strengths, decoder = dictionary.strengths.cpu(), dictionary.decoder.float().cpu()
    norms = decoder.norm(dim=1).clamp(min=1e-12)
    along = decoder @ own.residual / norms**2
    usable = strengths > 0
    by_firing = (own.activations * norms).where(usable, torch.tensor(-torch.inf))
    by_direction = (along * norms).where(usable, torch.tensor(-torch.inf))
    half = (n_candidates + 1) // 2
    order = [*by_direction.topk(half).indices.tolist(), *by_firing.topk(n_candidates).indices.tolist()]
    proposals: list[Proposal] = []
    for feature in list(dict.fromkeys(order))[:n_candidates]:
        size = max(float(own.activations[feature]), float(along[feature]))
        if size > 0:
            proposals.append(Proposal("latent", (feature,), (size / float(strengths[feature]),)))
    common = torch.stack([other.residual for other in contrasts.values()]).mean(dim=0)
    for target in (own.residual, own.residual - common):
        for n_features in range(2, max_latents + 1):
            features, weights = sparse_fit(dictionary, target, n_features)
            group = Proposal("latents", tuple(features.tolist()), tuple(weights.tolist()))
            if len(features) > 1 and all(group.features != known.features for known in proposals):
                proposals.append(group)
    return proposals


def propose_random(
    directions: Float[Tensor, "n d_in"],
    contrasts: Mapping[str, Contrast],
    concept: str,
    n_candidates: int,
) -> list[Proposal]:
    """The rows of a random dictionary that point most along the difference of means: the same rule as for latents."""
    along = directions @ contrasts[concept].residual
    best = along.topk(n_candidates).indices.tolist()
    return [Proposal("random_dictionary", (row,), (float(along[row]),)) for row in best]


def random_directions(n: int, d_in: int, seed: int) -> Float[Tensor, "n d_in"]:
    """Random directions of norm 1."""
    drawn = torch.from_numpy(np.random.default_rng(seed).standard_normal((n, d_in))).float()
    return drawn / drawn.norm(dim=1, keepdim=True)


def vector_of(edits: Sequence[Edit], dictionary: Dictionary) -> Float[Tensor, " d_in"]:
    """What edits that only add amount to."""
    total = torch.zeros(dictionary.decoder.shape[1])
    for edit in edits:
        if isinstance(edit, Add):
            total += edit.dose * float(dictionary.strengths[edit.feature]) * dictionary.decoder[edit.feature].cpu()
        elif isinstance(edit, AddDirection):
            total += edit.dose * edit.direction
    return total


def matched_controls(
    arm: Arm,
    dictionary: Dictionary,
    densities: Float[Tensor, " d_sae"],
    other_hook: str,
    wanted: Sequence[str],
    seed: int,
) -> list[Arm]:
    """Controls that add a vector of the same norm at the same positions as an arm does.

    Args:
        arm: a single latent at its dose.
        dictionary: its SAE.
        densities: how often each latent fires; the random latent is one of the 20 that fire about as often.
        other_hook: a hook point after another layer.
        wanted: names of the controls.
        seed: of the random ones.
    """
    vector = vector_of(arm.edits, dictionary)
    norm, d_in, hook = float(vector.norm()), len(vector), dictionary.hook_name
    feature = arm.proposal.features[0]
    rng = np.random.default_rng([seed, feature, *arm.concept.encode()])
    rows = dictionary.decoder.float().cpu()
    rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
    distances = (densities - densities[feature]).abs().numpy()
    alike = [int(other) for other in np.argsort(distances, kind="stable")[:21]]
    permuted = np.random.default_rng([seed, 1]).permutation(len(rows))
    gaussian = torch.from_numpy(rng.standard_normal(d_in)).float()
    made: dict[str, tuple[Tensor, str]] = {
        "wrong_sign": (-vector, hook),
        "random_direction": (gaussian / gaussian.norm() * norm, hook),
        "random_latent": (rows[int(rng.choice([other for other in alike if other != feature]))] * norm, hook),
        "permuted_decoder": (rows[int(permuted[feature])] * norm, hook),
        "wrong_layer": (vector, other_hook),
    }
    return [
        replace(arm, name=name, edits=(AddDirection(direction, 1.0, place),))
        for name, (direction, place) in made.items()
        if name in wanted
    ]


def removals(
    concept: str, at_last: Contrast, at_images: Contrast, group: Proposal, dictionary: Dictionary
) -> list[Arm]:
    """Arms that take a concept away: latents set to 0, in growing numbers, and a few set below 0.

    Args:
        concept: the concept.
        at_last, at_images: how much more each latent fires with the concept, at the last prompt token and at those of
            images; latents are ranked by both in turn.
        group: the latents that write the concept.
        dictionary: the SAE.
    """
    norms, hook = dictionary.decoder.float().cpu().norm(dim=1), dictionary.hook_name
    rankings = [(own.activations * norms).topk(max(ABLATED)).indices.tolist() for own in (at_last, at_images)]
    ranked = list(dict.fromkeys(feature for pair in zip(*rankings, strict=True) for feature in pair))
    arms: list[Arm] = []
    for n in ABLATED:
        features = tuple(ranked[:n])
        edits = tuple(Ablate(feature, hook) for feature in features)
        arms.append(Arm(f"ablation_{n}", concept, edits, 0.0, Proposal("ablation", features, (0.0,) * n)))
    below = tuple(Clamp(f, -w, hook) for f, w in zip(group.features, group.weights, strict=True))
    return [*arms, Arm("suppression", concept, below, -1.0, group)] if below else arms
