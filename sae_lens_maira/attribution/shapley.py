"""Shapley values of the sources of a prompt: how much of a feature's value each source explains.

A game has k players, here the sources of a prompt (images, prompt text, ...). Its value for a set of players is the
feature's value when these sources are the study's own and all others are swapped. Shapley (1953), "A Value for n-Person
Games": the share of player i is the average, over all orders in which players can come, of what it adds when it comes,

    phi_i = sum over sets S without i of |S|! (k - |S| - 1)! / k! * (v(S + i) - v(S)).

The shares sum to v(all) - v(none), the total effect. Sets are numbered by their bits: player i is in set number s if
bit i of s is set, so ``v[0]`` has everything swapped and ``v[-1]`` nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import factorial

import numpy as np
from jaxtyping import Float


def shapley_weights(n_players: int) -> Float[np.ndarray, "n_players n_sets"]:
    """The matrix whose product with the values of all sets gives the Shapley values."""
    weights = np.zeros((n_players, 2**n_players))
    for number in range(2**n_players):
        size = number.bit_count()
        for player in range(n_players):
            if number >> player & 1:
                weights[player, number] = factorial(size - 1) * factorial(n_players - size)
            else:
                weights[player, number] = -factorial(size) * factorial(n_players - size - 1)
    return weights / factorial(n_players)


def shapley_values(
    values: Float[np.ndarray, "n_sets n_places n_features"],
) -> Float[np.ndarray, "n_players n_places n_features"]:
    """Each player's Shapley value; they sum to ``values[-1] - values[0]``.

    Args:
        values: of the game, for every set of players.
    """
    n_players = len(values).bit_length() - 1
    if len(values) != 2**n_players:
        raise ValueError(f"A game of k players has 2**k values, but these are {len(values)}.")
    return np.tensordot(shapley_weights(n_players), values, axes=1)


def interaction(
    values: Float[np.ndarray, "n_sets n_places n_features"], first: Sequence[int], second: Sequence[int]
) -> Float[np.ndarray, "n_places n_features"]:
    """How much more two groups of players do together than each alone; the other players are swapped.

    ``v(first + second) - v(first) - v(second) + v(none)``: positive if a feature needs both groups, negative if either
    is enough.

    Args:
        values: of the game, for every set of players.
        first: players of one group.
        second: players of another one.
    """
    one, other = (sum(1 << player for player in players) for players in (first, second))
    return values[one | other] - values[one] - values[other] + values[0]
