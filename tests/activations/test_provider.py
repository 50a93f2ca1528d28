"""Batches from a cache: their contents, resuming, selections, several hook points; and the export for SAE-Lens."""

from itertools import islice
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens_maira.activations import ActivationCache
from sae_lens_maira.activations.export import export_for_sae_lens
from sae_lens_maira.activations.provider import CachedActivations, CachedMultiHookActivations
from sae_lens_maira.activations.selection import TokenSelection, with_norm_limits
from sae_lens_maira.activations.write import write_cache
from sae_lens_maira.data.study import TokenKind
from sae_lens_maira.errors import CacheError, DataExhausted
from tests.activations.conftest import HOOKS, make_settings


@pytest.fixture(scope="module")
def cache(cache_path) -> ActivationCache:
    return ActivationCache.open(cache_path)


@pytest.fixture(scope="module")
def stored(cache) -> torch.Tensor:
    """All activations at the first hook point, in storage order."""
    return torch.cat([block.activations[HOOKS[0]] for block in cache.blocks(HOOKS[0])])


def sorted_rows(values: torch.Tensor) -> np.ndarray:
    array = values.float().numpy()
    return array[np.lexsort(array.T)]


@settings(max_examples=25, deadline=None)
@given(batch_size=st.integers(1, 3000), run_length=st.sampled_from([1, 7, 64]), n_epochs=st.integers(1, 3))
def test_every_activation_comes_once_an_epoch(cache, stored, batch_size, run_length, n_epochs):
    """Whole epochs contain each stored row once per epoch."""
    provider = CachedActivations(cache, HOOKS[0], batch_size=batch_size, run_length=run_length, window_bytes=1 << 15)
    n_rows = n_epochs * len(stored)
    batches = list(islice(provider, -(-n_rows // batch_size)))
    assert all(batch.shape == (batch_size, cache.d_in) for batch in batches)
    if n_rows % batch_size == 0 or batch_size == 1:
        assert np.array_equal(sorted_rows(torch.cat(batches)), sorted_rows(stored.repeat(n_epochs, 1)))
    fresh = CachedActivations(cache, HOOKS[0], batch_size=batch_size, run_length=run_length, window_bytes=1 << 15)
    tokens = np.concatenate([fresh.next_tokens() for _ in batches])
    counts = np.bincount(tokens, minlength=len(stored))
    assert counts.min() >= n_epochs
    assert counts.sum() - n_epochs * len(stored) < batch_size
    assert torch.equal(torch.cat(batches), stored[torch.from_numpy(tokens)])


@pytest.mark.parametrize("n_before", [0, 1, 9, 40])
def test_a_restored_provider_goes_on_exactly(cache, n_before):
    make = lambda: CachedActivations(cache, HOOKS[0], batch_size=100, seed=4)  # noqa: E731
    whole, stopped = make(), make()
    expected = list(islice(whole, n_before + 20))[n_before:]
    list(islice(stopped, n_before))
    resumed = make()
    resumed.load_state_dict(stopped.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(islice(resumed, 20), expected, strict=True))


def test_a_state_of_other_tokens_or_another_seed_is_refused(cache):
    state = CachedActivations(cache, HOOKS[0], batch_size=10).state_dict()
    with pytest.raises(CacheError, match="another seed or run length"):
        CachedActivations(cache, HOOKS[0], batch_size=10, seed=1).load_state_dict(state)
    fewer = TokenSelection(n_studies=5)
    with pytest.raises(CacheError, match="other cached tokens"):
        CachedActivations(cache, HOOKS[0], batch_size=10, selection=fewer).load_state_dict(state)
    with pytest.raises(CacheError, match="without cached activations"):
        CachedActivations(cache, HOOKS[0], batch_size=10).load_state_dict({})


def test_selections_take_what_they_say(cache):
    blocks = list(cache.blocks(HOOKS[0]))
    kind, index, position = (
        torch.cat([getattr(block, name) for block in blocks]) for name in ("kind", "study_index", "position")
    )
    norms = torch.cat([block.norms[HOOKS[0]] for block in blocks])
    limited = with_norm_limits(TokenSelection(), cache, HOOKS[:1], 1.2)
    for selection, expected in (
        (TokenSelection(kinds=(TokenKind.FINDINGS,)), kind == TokenKind.FINDINGS),
        (TokenSelection(n_studies=7), index < 7),
        (TokenSelection(context_size=20, study_token=False), (position > 0) & (position < 20)),
        (
            limited,
            torch.from_numpy(norms.numpy() <= 1.2 * np.median(norms.numpy())),
        ),
    ):
        provider = CachedActivations(cache, HOOKS[0], batch_size=int(expected.sum()), selection=selection)
        assert 0 < provider.n_tokens == int(expected.sum()) < len(kind)
        assert provider.next_tokens().tolist() == expected.nonzero()[:, 0].tolist()
    with pytest.raises(DataExhausted, match="No token of the cache .* is left"):
        CachedActivations(cache, HOOKS[0], batch_size=1, selection=TokenSelection(n_studies=0))


def test_the_scaling_factor_is_what_sae_lens_would_estimate_from_a_whole_epoch(cache, stored):
    from sae_lens.training.activation_scaler import ActivationScaler

    provider = CachedActivations(cache, HOOKS[0], batch_size=len(stored))
    scaler = ActivationScaler()
    scaler.estimate_scaling_factor(cache.d_in, provider, n_batches_for_norm_estimate=1)
    assert provider.scaling_factor == pytest.approx(scaler.scaling_factor, rel=1e-5)


def test_several_hook_points_give_the_same_tokens(cache):
    both = CachedMultiHookActivations(cache, HOOKS, batch_size=64, seed=9)
    alone = [CachedActivations(cache, hook, batch_size=64, seed=9) for hook in HOOKS]
    for batch, *expected in islice(zip(both, *alone, strict=False), 12):
        assert list(batch) == list(HOOKS)
        assert all(torch.equal(batch[hook], values) for hook, values in zip(HOOKS, expected, strict=True))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_batches_are_converted(cached_model, tmp_path, dtype):
    write_cache(cached_model, tmp_path, make_settings(dtype=dtype), show_progress=False)
    cache = ActivationCache.open(tmp_path)
    stored = torch.cat([block.activations[HOOKS[0]] for block in cache.blocks(HOOKS[0])])
    provider = CachedActivations(cache, HOOKS[0], batch_size=len(stored))
    batch = next(provider)
    assert batch.dtype == torch.float32
    assert torch.equal(batch, stored.float())


def test_the_export_is_the_kept_tokens_end_to_end(cache, stored, tmp_path, caplog):
    with caplog.at_level("INFO"):
        n_contexts = export_for_sae_lens(cache, HOOKS[0], tmp_path / "out", context_size=48, show_progress=False)
    assert n_contexts == len(stored) // 48
    assert f"the last {len(stored) - 48 * n_contexts} tokens do not fill a context and are left out" in caplog.text
    dataset: Any = datasets.load_from_disk(str(tmp_path / "out")).with_format("torch")
    assert torch.equal(dataset[:][HOOKS[0]].reshape(-1, cache.d_in), stored[: 48 * n_contexts])
    token_ids = torch.cat([block.token_ids for block in cache.blocks(HOOKS[0])])
    assert torch.equal(dataset[:]["token_ids"].reshape(-1).long(), token_ids[: 48 * n_contexts])
    with pytest.raises(CacheError, match="is not empty"):
        export_for_sae_lens(cache, HOOKS[0], tmp_path / "out", show_progress=False)
    with pytest.raises(CacheError, match="fewer than a context"):
        export_for_sae_lens(cache, HOOKS[0], tmp_path / "b", context_size=10**6, show_progress=False)
    with pytest.raises(CacheError, match="has 0 tokens to export, fewer than a context of 128"):
        export_for_sae_lens(cache, HOOKS[0], tmp_path / "b", selection=TokenSelection(n_studies=0))
    assert not (tmp_path / "b").exists()


def test_memory_of_a_batch_is_used_again_only_when_nothing_refers_to_it(cache):
    """A batch must not change while it, a view of it, or autograd's copy of it is in use."""
    provider = CachedActivations(cache, HOOKS[0], batch_size=64)
    weights = torch.ones(cache.d_in, requires_grad=True)
    kept = [(batch, batch.clone()) for batch in islice(provider, 9)]
    views = [(view, view.clone()) for view in (next(provider)[5:, ::2] for _ in range(9))]
    product = next(provider) @ weights
    again = CachedActivations(cache, HOOKS[0], batch_size=64)
    expected = list(islice(again, 19))[-1].sum(dim=0)
    places = {next(provider).data_ptr() for _ in range(20)}
    assert len(places) == 1
    assert all(torch.equal(now, before) for now, before in kept + views)
    product.sum().backward()
    assert weights.grad is not None
    torch.testing.assert_close(weights.grad, expected)
