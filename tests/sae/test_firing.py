"""Sparse activations that count quickly are the sparse tensor in everything that SAE-Lens asks of them."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_lens_maira.sae.firing import CountableActivations


@given(st.integers(0, 2**31 - 1), st.integers(1, 12), st.integers(1, 12), st.floats(0, 1))
def test_all_that_the_trainer_asks_equals_the_dense_answer(
    seed: int, n_tokens: int, d_sae: int, density: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.rand(n_tokens, d_sae, generator=generator) * (
        torch.rand(n_tokens, d_sae, generator=generator) < density
    )
    countable = CountableActivations(dense.to_sparse())
    fired = countable.bool().float()
    expected = (dense > 0).float()
    assert torch.equal(fired.sum(0), expected.sum(0))
    assert torch.equal(fired.sum(-2).bool(), expected.any(0))
    assert torch.equal(fired.sum(-1).to_dense(), expected.sum(-1))
    torch.testing.assert_close(countable.sum(0), dense.sum(0))
    assert countable.is_sparse
    assert countable.shape == dense.shape
    assert torch.equal(countable.to_dense(), dense)
    assert torch.equal(countable.coalesce().values(), dense[dense > 0])
    counts = torch.ones(d_sae)
    counts += fired.sum(0)
    assert torch.equal(counts, 1 + expected.sum(0))
