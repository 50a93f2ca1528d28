"""Probing, absorption, monosemanticity and noise: by hand, by loops, and by SciPy's optimizer and Tukey's test."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import tukey_hsd

from sae_lens_maira.activations.block import Block
from sae_lens_maira.concepts.dictionaries.absorption import absorption, best_feature, concept_tree
from sae_lens_maira.concepts.dictionaries.exchange import matched_latents
from sae_lens_maira.concepts.dictionaries.monosemanticity import monosemanticity
from sae_lens_maira.concepts.dictionaries.noise import compare
from sae_lens_maira.concepts.dictionaries.probing import fit_logistic, probe_aurocs
from sae_lens_maira.concepts.dictionaries.readings import core_scores, held_out_tokens, study_maxima
from sae_lens_maira.phantom.world.concepts import VISIBLE

RNG = np.random.default_rng(0)


def test_the_logistic_regression_minimizes_its_loss() -> None:
    values, positive = RNG.normal(size=(60, 3)), RNG.random(60) < 0.4

    def loss(weights: np.ndarray) -> float:
        logits = values @ weights[:-1] + weights[-1]
        return float(np.logaddexp(0, np.where(positive, -logits, logits)).sum() + (weights[:-1] ** 2).sum() / 2)

    wanted = minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-9}).x
    np.testing.assert_allclose(fit_logistic(values, positive), wanted, atol=1e-4)


def test_a_probe_finds_the_planted_latents_and_scores_chance_without_any() -> None:
    positive = RNG.random((400, 2)) < 0.3
    latents = np.abs(RNG.normal(size=(400, 30)))
    latents[:, 7] += 6 * positive[:, 0]
    areas = probe_aurocs(latents[:200], positive[:200], latents[200:], positive[200:])
    assert areas[0, 0] > 0.98
    assert 0.3 < areas[0, 1] < 0.7


def test_a_concept_with_too_few_studies_is_no_number() -> None:
    positive = np.zeros((40, 1), dtype=bool)
    positive[:3] = True
    assert np.isnan(probe_aurocs(RNG.random((40, 4)), positive, RNG.random((40, 4)), positive)).all()


def monosemanticity_by_loops(activations: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
    """All pairs of studies, one after the other."""
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    low, high = activations.min(axis=0), activations.max(axis=0)
    scores = []
    for column in ((activations - low) / (high - low)).T:
        above = below = 0.0
        for n in range(len(units)):
            for m in range(len(units)):
                if n != m:
                    above += column[n] * column[m] * float(units[n] @ units[m])
                    below += column[n] * column[m]
        scores.append(above / below)
    return np.array(scores)


def test_the_closed_form_of_monosemanticity_is_the_sum_over_pairs() -> None:
    activations, embeddings = RNG.random((25, 4)), RNG.normal(size=(25, 6))
    found = monosemanticity(activations, embeddings)
    np.testing.assert_allclose(found, monosemanticity_by_loops(activations, embeddings), atol=1e-10)


def test_monosemanticity_by_hand() -> None:
    """Two equal studies and one at a right angle: 1 if the latent fires in the equal ones, 0 if in the others."""
    embeddings = np.array([[1.0, 0], [2, 0], [0, 1]])
    activations = np.array([[3.0, 0, 0], [3, 2, 0], [0, 2, 5]])
    found = monosemanticity(activations, embeddings)
    np.testing.assert_allclose(found[:2], [1, 0], atol=1e-12)
    assert np.isnan(found[2])


def test_the_tree_has_devices_lines_and_sides() -> None:
    tree = concept_tree()
    assert tree["central_line"] == {side: frozenset({side}) for side in ("central_line_right", "central_line_left")}
    assert set(tree["effusion"]) == {"effusion_right", "effusion_left"}
    assert tree["effusion_left"] == {size: frozenset({size}) for size in ("effusion_left_small", "effusion_left_large")}
    assert tree["device"]["endotracheal_tube"] == {"endotracheal_tube_well_placed", "endotracheal_tube_too_low"}
    assert "cardiomegaly" not in tree


def planted(absorbed: float, n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Latent 0 stands for any nodule, but is silent in a share of the right ones; latents 1 and 2 stand for a side."""
    rng = np.random.default_rng(5)
    truth = np.zeros((n, len(VISIBLE)), dtype=bool)
    right, left = VISIBLE.index("nodule_right"), VISIBLE.index("nodule_left")
    truth[:, right], truth[:, left] = np.arange(n) % 4 == 0, np.arange(n) % 4 == 1
    is_absorbed = truth[:, right] & (rng.random(n) < absorbed)
    parent = (truth[:, right] | truth[:, left]) & ~is_absorbed
    return np.stack([parent, truth[:, right], truth[:, left]], axis=1).astype(np.float32), truth


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_planted_absorption_is_found(share: float) -> None:
    values, truth = planted(share)
    tree = {"nodule": concept_tree()["nodule"]}
    found = absorption(values, truth, values, truth, parents_from=[0], tree=tree)
    silent = values[truth[:, VISIBLE.index("nodule_right")], 0] == 0
    assert found.judged == 1
    assert found.rate == found.missed == pytest.approx(silent.mean() / 2)  # of two children, only one is absorbed
    assert (found.rate > 0.1) == (share > 0)


def test_a_silent_parent_without_a_firing_child_is_missed_but_not_absorbed() -> None:
    values, truth = planted(0.4)
    silenced = values.copy()
    silenced[values[:, 0] == 0, 1] = 0
    tree = {"nodule": concept_tree()["nodule"]}
    found = absorption(values, truth, silenced, truth, parents_from=[0], tree=tree)
    assert found.rate == 0
    assert found.missed > 0.1


def test_a_parent_without_a_latent_is_not_judged() -> None:
    values, truth = planted(0.0)
    tree = {"nodule": concept_tree()["nodule"]}
    nothing = absorption(np.zeros_like(values), truth, values, truth, tree=tree)
    assert nothing.judged == 0
    assert np.isnan(nothing.rate)


def test_the_threshold_lies_between_the_classes() -> None:
    values = np.array([[0.0, 0], [0, 1], [3, 0], [5, 1]])
    found = best_feature(values, np.array([False, False, True, True]), np.arange(2))
    assert found == (0, 1.5, 1.0)


@settings(max_examples=12, deadline=None)
@given(st.integers(2, 4), st.integers(3, 5), st.integers(0, 1000))
def test_claims_are_those_of_tukeys_test(n_dictionaries: int, n_seeds: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = {str(i): rng.normal(rng.normal() * 2, 1, n_seeds) for i in range(n_dictionaries)}
    found = compare({name: own.tolist() for name, own in values.items()})
    p_values = tukey_hsd(*values.values()).pvalue
    pairs = {(int(a), int(b)) for a, b in found.claims}
    for i in range(n_dictionaries):
        for j in range(n_dictionaries):
            is_larger = found.means[str(i)] > found.means[str(j)]
            assert ((i, j) in pairs) == bool(p_values[i, j] < 0.05 and is_larger and i != j)


def test_seeds_that_differ_as_much_as_dictionaries_allow_no_claim() -> None:
    found = compare({"a": [0.1, 0.5, 0.9], "b": [0.2, 0.6, 1.0]})
    assert found.claims == ()
    assert found.smallest > 0.1
    assert compare({"a": [1.0], "b": [2.0]}).claims == ()


def block() -> Block:
    activations = torch.tensor([[1.0, 0], [4, 2], [2, 9], [0, 3], [7, 7]])
    ints = torch.tensor([0, 0, 1, 1, 3])
    kinds = torch.tensor([9, 9, 9, 6, 9], dtype=torch.uint8)
    return Block({"h": activations}, {"h": activations.norm(dim=1)}, ints, ints, ints, kinds)


def test_study_maxima_read_only_wanted_kinds_and_studies() -> None:
    found = study_maxima(lambda tokens: tokens, [block()], "h", (9,), np.array([0, 1, 2]))
    assert found.tolist() == [[4, 2], [2, 9], [0, 0]]


def test_held_out_tokens_leave_out_sinks_and_other_studies() -> None:
    tokens = held_out_tokens([block()], "h", 1, 10, 2.0)
    assert tokens.tolist() == [[2, 9], [0, 3], [7, 7]]
    assert held_out_tokens([block()], "h", 1, 10, 1.0).tolist() == [[2, 9], [0, 3]]


def test_core_scores_by_hand() -> None:
    class Halving:
        """Keeps the first two coordinates; its third latent is dead."""

        class cfg:
            d_sae = 3

        def encode(self, tokens: torch.Tensor) -> torch.Tensor:
            return torch.cat([tokens, torch.zeros(len(tokens), 1)], dim=1)

        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            return latents[:, :2] / 2

    scores = core_scores(Halving(), torch.tensor([[2.0, 0], [0, 2]]))
    # residual 1 + 1, variance around (1, 1) is 2 + 2
    assert scores == pytest.approx({"explained_variance": 0.5, "l0": 1, "dead_share": 1 / 3, "dense_share": 2 / 3})


def test_matched_latents_fire_as_often_and_are_others() -> None:
    density = np.linspace(0, 1, 200)
    chosen = np.array([[100, 150], [10, 11]])
    matched = matched_latents(chosen, density, 0)
    for own, others in zip(chosen, matched, strict=True):
        assert not set(own) & set(others)
        assert len(set(others)) == 2
        assert np.abs(density[own] - density[others]).max() < 0.15
