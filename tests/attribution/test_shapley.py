"""Shapley values against orders of players written out, and their axioms."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sae_lens_maira.attribution.shapley import interaction, shapley_values


def games(n_players):
    return arrays(np.float64, (2**n_players, 1, 2), elements=st.floats(-100, 100))


def by_orders(values):
    """The definition: the average over all orders of what a player adds when it comes."""
    n_players = len(values).bit_length() - 1
    found = np.zeros((n_players, *values.shape[1:]))
    orders = list(permutations(range(n_players)))
    for order in orders:
        present = 0
        for player in order:
            found[player] += values[present | 1 << player] - values[present]
            present |= 1 << player
    return found / len(orders)


@given(st.integers(1, 4).flatmap(games))
def test_values_are_the_average_over_all_orders_and_sum_to_the_total(values):
    found = shapley_values(values)
    np.testing.assert_allclose(found, by_orders(values), atol=1e-9)
    np.testing.assert_allclose(found.sum(axis=0), values[-1] - values[0], atol=1e-9)


def test_a_game_by_hand():
    # v() = 0, v(first) = 4, v(second) = 2, v(both) = 10: they add (4 + 8) / 2 and (2 + 6) / 2.
    values = np.array([0.0, 4.0, 2.0, 10.0]).reshape(4, 1, 1)
    assert shapley_values(values).ravel().tolist() == [6.0, 4.0]
    assert interaction(values, [0], [1]).item() == 4.0  # 10 - 4 - 2 + 0


def test_a_player_that_adds_nothing_has_no_share():
    values = np.random.default_rng(0).normal(size=(4, 1, 3))
    padded = np.concatenate([values, values])  # the third player changes nothing
    found = shapley_values(padded)
    np.testing.assert_allclose(found[:2], shapley_values(values))
    np.testing.assert_allclose(found[2], 0, atol=1e-12)


def test_sets_that_are_missing_are_refused():
    with pytest.raises(ValueError, match=r"2\*\*k values, but these are 3"):
        shapley_values(np.zeros((3, 1, 1)))
