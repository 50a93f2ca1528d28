"""The shuffle: each token once per epoch, for all sizes; and how well it mixes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens_maira.activations.shuffle import GlobalShuffle


@settings(max_examples=150, deadline=None)
@given(
    n_tokens=st.integers(1, 700),
    run_length=st.integers(1, 50),
    window=st.integers(1, 300),
    seed=st.integers(0, 2**31),
    cuts=st.lists(st.integers(1, 90), min_size=1, max_size=8),
)
def test_each_token_comes_once_an_epoch_however_it_is_taken(n_tokens, run_length, window, seed, cuts):
    order = GlobalShuffle(n_tokens, seed, run_length, window)
    for epoch in (0, 1):
        taken, place, step = [], 0, 0
        while place < n_tokens:
            stop = min(place + cuts[step % len(cuts)], n_tokens)
            taken.append(order.take(epoch, place, stop))
            place, step = stop, step + 1
        tokens = np.concatenate(taken)
        assert sorted(tokens.tolist()) == list(range(n_tokens))
        assert np.array_equal(GlobalShuffle(n_tokens, seed, run_length, window).take(epoch, 0, n_tokens), tokens)


@settings(max_examples=50, deadline=None)
@given(n_tokens=st.integers(1, 500), run_length=st.integers(1, 20), window=st.integers(1, 100))
def test_windows_hold_the_runs_that_are_read_ahead(n_tokens, run_length, window):
    order = GlobalShuffle(n_tokens, 5, run_length, window)
    starts = order.epoch(0).window_starts
    for number in range(len(starts) - 1):
        ahead = [token for run in order.runs_of(0, number) for token in run]
        assert sorted(order.take(0, int(starts[number]), int(starts[number + 1])).tolist()) == ahead
        assert order.window_at(0, int(starts[number])) == number
    assert order.runs_of(0, len(starts) - 1) == []


def test_epochs_and_seeds_have_orders_of_their_own():
    first = GlobalShuffle(1000, 1)
    orders = [first.take(0, 0, 1000), first.take(1, 0, 1000), GlobalShuffle(1000, 2).take(0, 0, 1000)]
    for index, order in enumerate(orders):
        for other in orders[index + 1 :]:
            assert (order == other).mean() < 0.02
    assert len({GlobalShuffle(1000, seed).checksum(epoch) for seed in range(5) for epoch in range(5)}) == 25


def test_with_runs_of_one_every_token_is_as_likely_at_every_place():
    """Chi-squared over 12,000 seeds: each of 6 tokens at each of 6 positions; 25 degrees of freedom."""
    counts = np.zeros((6, 6))
    for seed in range(12_000):
        counts[np.arange(6), GlobalShuffle(6, seed, run_length=1, window=2).take(0, 0, 6)] += 1
    assert ((counts - 2000) ** 2 / 2000).sum() < 60  # exceeded with a chance of 1e-4


@pytest.mark.parametrize(("run_length", "expected"), [(1, 255 / 65_535), (32, 31 / 65_535 + 224 / 65_535)])
def test_neighbours_meet_in_a_batch_no_more_often_than_in_a_random_sample(run_length, expected):
    """Batches of 256 of 65,536 tokens with one window: the chance that a token's neighbor is in its batch."""
    order = GlobalShuffle(65_536, 3, run_length, window=65_536)
    meetings = 0
    for start in range(0, 65_536, 256):
        batch = np.sort(order.take(0, start, start + 256))
        meetings += int((np.diff(batch) == 1).sum())
    assert meetings / 65_535 == pytest.approx(expected, abs=4 * (expected / 65_535) ** 0.5)


def test_runs_of_several_tokens_come_together_in_a_window_as_the_documentation_says():
    order = GlobalShuffle(4096, 3, run_length=16, window=512)
    for start in range(0, 4096, 512):
        runs, counts = np.unique(order.take(0, start, start + 512) // 16, return_counts=True)
        assert len(runs) == 32
        assert (counts == 16).all()


def test_nothing_to_shuffle_is_an_error():
    with pytest.raises(ValueError, match="no tokens"):
        GlobalShuffle(0, 1)
    with pytest.raises(ValueError, match="at least 1"):
        GlobalShuffle(5, 1, run_length=0)


def test_the_order_within_a_window_is_another_one_in_each_epoch_and_window():
    """One run of all tokens: nothing but the order within its window can differ between epochs."""
    order = GlobalShuffle(512, 1, run_length=512, window=512)
    assert (order.take(0, 0, 512) == order.take(1, 0, 512)).mean() < 0.05
    two = GlobalShuffle(1024, 1, run_length=512, window=512)
    assert (two.take(0, 0, 512) % 512 == two.take(0, 512, 1024) % 512).mean() < 0.05
