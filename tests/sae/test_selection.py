"""The selection is exact whatever the guess, and takes equal activations in order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens_maira.sae import selection
from sae_lens_maira.sae.selection import (
    Encoder,
    ThresholdGuess,
    batch_topk_mask,
    select_batch_topk,
    token_topk_mask,
)
from tests.sae.sae_reference import top_mask


def as_mask(chosen: selection.Selection, n_tokens: int, d_sae: int) -> torch.Tensor:
    mask = torch.zeros(n_tokens, d_sae, dtype=torch.bool)
    mask[chosen.tokens, chosen.latents] = True
    return mask


@pytest.mark.parametrize("cut", [None, 0.0, 1e-3, 0.5, 2.0, 1e9])
def test_the_guess_does_not_change_the_selection(cut: float | None) -> None:
    torch.manual_seed(0)
    norms = torch.rand(64) + 0.5
    encoder = Encoder(torch.randn(40, 8), torch.randn(64, 8), torch.randn(64), norms)
    dense = (encoder.x @ encoder.rows.T + encoder.bias) * norms
    guess = ThresholdGuess(cut)
    chosen = select_batch_topk(encoder, 200, guess)
    assert torch.equal(as_mask(chosen, 40, 64), top_mask(dense, 200))
    assert guess.cut == pytest.approx(float(dense.flatten().topk(200).values.min()), rel=1e-5)


def test_blocks_do_not_change_the_selection(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    encoder = Encoder(torch.randn(40, 8), torch.randn(64, 8), torch.randn(64))
    whole = as_mask(select_batch_topk(encoder, 100, ThresholdGuess()), 40, 64)
    monkeypatch.setattr(selection, "BLOCK_ELEMENTS", 1)
    assert torch.equal(as_mask(select_batch_topk(encoder, 100, ThresholdGuess()), 40, 64), whole)


def test_the_guess_settles_on_few_candidates() -> None:
    torch.manual_seed(0)
    rows, guess, counts = torch.randn(512, 16), ThresholdGuess(), []
    original = ThresholdGuess.learn

    class Spy(ThresholdGuess):
        def learn(self, cut: float, n_candidates: int, n_wanted: int) -> None:
            counts.append(n_candidates / n_wanted)
            original(self, cut, n_candidates, n_wanted)

    guess = Spy()
    for _ in range(20):
        select_batch_topk(Encoder(torch.randn(256, 16), rows, torch.zeros(512)), 256 * 8, guess)
    assert max(counts[5:]) < 2.5
    assert min(counts) >= 1


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 150), st.integers(0, 10**6))
def test_dense_masks_equal_a_stable_sort(n_tokens: int, d_sae: int, n_wanted: int, seed: int) -> None:
    torch.manual_seed(seed)
    activations = torch.randn(n_tokens, d_sae).mul(2).round()
    assert torch.equal(batch_topk_mask(activations, n_wanted), top_mask(activations, n_wanted))
    k = min(max(n_wanted, 1), d_sae)
    rows = torch.cat([top_mask(row[None], k) for row in activations])
    assert torch.equal(token_topk_mask(activations, k), rows)
