"""Counterfactual pairs and exchanges on the phantom, with dictionaries whose effect is known."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sae_lens_maira.concepts.dictionaries.exchange import (
    concept_latents,
    detection,
    disentanglement,
    exchanged_scores,
    full_effects,
    other_families,
)
from sae_lens_maira.concepts.dictionaries.pairs import Batch, Pair, make_pairs, read_pairs, recital, sentence_scores
from sae_lens_maira.hooked.loading import load_model
from sae_lens_maira.phantom.words.scoring import parse_report
from sae_lens_maira.phantom.world.concepts import CONCEPTS, VISIBLE
from sae_lens_maira.rows.policy import TokenPolicy
from sae_lens_maira.settings import ModelConfig

HOOK = "blocks.2.hook_resid_post"
POLICY = TokenPolicy(image_tokens="all", template="keep")


class Coordinates:
    """The dictionary whose latents are the coordinates of the residual stream."""

    cfg = SimpleNamespace(d_sae=160)
    W_dec = torch.eye(160)

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    wanted = ("pacemaker", "effusion_left_large", "pneumothorax_right")
    return [pair for pair in make_pairs(1, 7) if pair.concept in wanted]


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model(ModelConfig(), (), POLICY)


@pytest.fixture(scope="module")
def batch(model: Any, pairs: list[Pair]) -> Batch:
    (found,) = read_pairs(model, pairs, HOOK, (9, 10))
    return found


def test_pairs_differ_in_one_family_only() -> None:
    for pair in make_pairs(1, 3):
        assert pair.source.labels[pair.concept].positive
        assert not pair.base.labels[pair.concept].positive
        changed = {name for name in VISIBLE if pair.base.labels[name] != pair.source.labels[name]}
        assert {CONCEPTS[name].family for name in changed} == {CONCEPTS[pair.concept].family}


def test_the_recital_says_every_concept_once() -> None:
    assert parse_report(recital()).positives == set(VISIBLE)


def test_a_concept_that_is_drawn_raises_its_own_sentence(batch: Batch) -> None:
    effects = batch.source_scores - batch.base_scores
    own = effects[np.arange(len(batch.concepts)), batch.concepts]
    assert (own > 2).all()
    assert own.mean() > 2 * np.abs(effects).mean()


def test_sentence_scores_sum_to_the_log_probability_of_the_recital() -> None:
    logits = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(0))
    targets, sentence = torch.tensor([[3, 1, 5, 0]]), torch.tensor([[-1, 0, 0, 2]])
    scores = sentence_scores(logits, targets, sentence)[0]
    logs = logits.log_softmax(-1)[0]
    assert scores[0] == pytest.approx(float(logs[1, 1] + logs[2, 5]), abs=1e-6)
    assert scores[2] == pytest.approx(float(logs[3, 0]), abs=1e-6)
    assert scores[1] == 0


def test_exchanging_no_latent_changes_nothing(model: Any, batch: Batch) -> None:
    nothing = np.empty((len(VISIBLE), 0), dtype=np.int64)
    scores = exchanged_scores(model, Coordinates(), batch, HOOK, nothing)
    np.testing.assert_allclose(scores, batch.base_scores, atol=1e-4)


def test_exchanging_everything_everywhere_is_the_other_study(model: Any, batch: Batch) -> None:
    everything = np.tile(np.arange(160), (len(VISIBLE), 1))
    everywhere = replace(batch, is_prompt=torch.ones_like(batch.is_prompt))
    scores = exchanged_scores(model, Coordinates(), everywhere, HOOK, everything)
    np.testing.assert_allclose(scores, batch.source_scores, atol=1e-3)
    found = disentanglement(model, Coordinates(), [everywhere], HOOK, everything)
    assert found.cause == pytest.approx(1, abs=1e-3)
    assert found.n_pairs == 3


def test_isolation_by_hand(model: Any, batch: Batch) -> None:
    everything = np.tile(np.arange(160), (len(VISIBLE), 1))
    everywhere = replace(batch, is_prompt=torch.ones_like(batch.is_prompt))
    effects, scale, wanted = batch.source_scores - batch.base_scores, full_effects([batch]), []
    for row, concept in enumerate(batch.concepts):
        others = [i for i in np.flatnonzero(other_families(int(concept))) if scale[i] >= 1]
        wanted.append(1 - np.mean([min(abs(effects[row, i]) / scale[i], 1) for i in others]))
    found = disentanglement(model, Coordinates(), [everywhere], HOOK, everything)
    assert found.isolation == pytest.approx(np.mean(wanted), abs=1e-3)


def planted() -> tuple[Batch, Any]:
    """Pairs of two concepts; coordinate 0 carries the first, coordinate 1 the second, and coordinate 2 both."""
    base = torch.full((4, 3, 160), -1.0)
    source = base.clone()
    concepts = np.array([0, 0, 5, 5])
    source[:2, 1, 0], source[2:, 1, 1], source[:, 1, 2] = 3.0, 3.0, 4.0
    mask = torch.ones(4, 3, dtype=torch.bool)
    scores, ids = np.zeros((4, len(VISIBLE))), torch.zeros(4, 3, dtype=torch.int64)
    return Batch(concepts, None, base, source, mask, mask, scores, scores, ids, ids), Coordinates()


def test_chosen_latents_are_those_of_the_concept_alone() -> None:
    batch, sae = planted()
    chosen = concept_latents(sae, [batch], 2)
    assert chosen[0].tolist() == [0, 2]
    assert chosen[5].tolist() == [1, 2]


def test_detection_by_hand() -> None:
    batch, sae = planted()
    assert detection(sae, [batch], [batch]) == (1, 1, 1)
    missed = replace(batch, source=batch.source.clone())
    missed.source[0, 1, 0] = -1
    found = detection(sae, [batch], [missed])
    assert found == (0.75, 1, 0.75)
    always = replace(batch, base=batch.source.clone())
    assert detection(sae, [batch], [always]) == (1, 0.5, 0)
