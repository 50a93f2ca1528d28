"""All scores of one dictionary that are read from the cache, and the same of controls without a dictionary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_maira.activations.block import Block
from sae_lens_maira.activations.read import ActivationCache
from sae_lens_maira.concepts.dictionaries.absorption import absorption
from sae_lens_maira.concepts.dictionaries.monosemanticity import concept_vectors, monosemanticity
from sae_lens_maira.concepts.dictionaries.probing import SIZES, probe_aurocs
from sae_lens_maira.concepts.dictionaries.readings import Encode, core_scores, held_out_tokens, study_maxima, truth_of
from sae_lens_maira.concepts.dictionaries.settings import DictionariesConfig
from sae_lens_maira.data.source import StudySource
from sae_lens_maira.phantom.world.concepts import VISIBLE

Score = dict[str, Any]
"""One value: ``metric``, ``subject`` (a concept, a group or empty) and ``value``."""
CONTROLS = ("random_directions", "coordinates")
_N_TOKENS = 40_000


@dataclass(frozen=True)
class StudyData:
    """What the scores are read from.

    Args:
        blocks: the cache's blocks that hold a wanted study.
        hook_name: the hook point.
        kinds: kinds of the tokens on which latents are read.
        choosing: studies to choose on, by index in the source.
        scoring: held-out studies.
        choosing_truth: which of the first show each concept, in the order of ``VISIBLE``.
        scoring_truth: the same of the others.
        tokens: held-out tokens for scores of reconstruction.
    """

    blocks: list[Block]
    hook_name: str
    kinds: tuple[int, ...]
    choosing: Int[np.ndarray, " n_choosing"]
    scoring: Int[np.ndarray, " n_scoring"]
    choosing_truth: Bool[np.ndarray, "n_choosing n_visible"]
    scoring_truth: Bool[np.ndarray, "n_scoring n_visible"]
    tokens: Float[Tensor, "n_tokens d_in"]

    @classmethod
    def read(cls, config: DictionariesConfig, cache: ActivationCache, studies: StudySource) -> StudyData:
        """From the cache and the studies that it was made of."""
        hook_name, first = config.training.hook_name, config.n_training
        choosing, scoring = np.arange(config.n_choosing), np.arange(first, len(studies))
        wanted = torch.from_numpy(np.concatenate([choosing, scoring]))
        blocks = [block for block in cache.blocks(hook_name) if bool(torch.isin(block.study_index, wanted).any())]
        tokens = held_out_tokens(blocks, hook_name, first, _N_TOKENS, config.training.max_norm_multiple)
        truths = [truth_of((dict(studies[int(i)].labels) for i in part), VISIBLE) for part in (choosing, scoring)]
        return cls(blocks, hook_name, config.kinds, choosing, scoring, truths[0], truths[1], tokens)

    def maxima(self, encode: Encode) -> tuple[Float[np.ndarray, "n_choosing d"], Float[np.ndarray, "n_scoring d"]]:
        """Each study's strongest value of each latent: choosing studies, and held-out ones."""
        both = np.concatenate([self.choosing, self.scoring])
        values = study_maxima(encode, self.blocks, self.hook_name, self.kinds, both)
        return values[: len(self.choosing)], values[len(self.choosing) :]


def study_scores(sae: Any, data: StudyData, widths: list[int]) -> list[Score]:
    """Core scores, k-sparse probing, absorption and monosemanticity of a dictionary.

    Args:
        sae: the dictionary.
        data: what is read.
        widths: cumulative widths of a nested dictionary's groups; empty for one without groups.
    """
    found = [_score(name, value) for name, value in core_scores(sae, data.tokens).items()]
    train, test = data.maxima(sae.encode)
    found += _probing(train, test, data)
    truths = data.choosing_truth, data.scoring_truth
    whole = absorption(train, truths[0], test, truths[1])
    found += [_score(f"absorption_{name}", value) for name, value in whole._asdict().items()]
    for start, stop in zip([0, *widths], widths, strict=False):
        own = absorption(train, truths[0], test, truths[1], range(start, stop))
        found += [_score(f"absorption_{name}", value, f"{start}-{stop}") for name, value in own._asdict().items()]
    semantic = monosemanticity(np.maximum(test, 0), concept_vectors(data.scoring_truth))
    found.append(_score("monosemanticity", float(np.nanmean(semantic))))
    return found


def control_scores(name: str, seed: int, data: StudyData, d_sae: int) -> list[Score]:
    """k-sparse probing of what is no dictionary: random directions, or the coordinates and their negatives.

    Args:
        name: one of :data:`CONTROLS`.
        seed: of the directions.
        data: what is read.
        d_sae: number of directions.
    """
    d_in = data.tokens.shape[1]
    directions = torch.cat([torch.eye(d_in), -torch.eye(d_in)], dim=1)
    if name == "random_directions":
        directions = torch.randn(d_in, d_sae, generator=torch.Generator().manual_seed(seed))
    train, test = data.maxima(lambda tokens: tokens @ directions)
    return _probing(train, test, data)


def _probing(train: np.ndarray, test: np.ndarray, data: StudyData) -> list[Score]:
    areas = probe_aurocs(train, data.choosing_truth, test, data.scoring_truth)
    found: list[Score] = []
    for size, own in zip(SIZES, areas, strict=True):
        found.append(_score(f"probe_k{size}", float(np.nanmean(own))))
        found += [_score(f"probe_k{size}", float(area), name) for name, area in zip(VISIBLE, own, strict=True)]
    return found


def _score(metric: str, value: float, subject: str = "") -> Score:
    return {"metric": metric, "subject": subject, "value": None if np.isnan(value) else float(value)}
