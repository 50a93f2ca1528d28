"""The smallest difference between two dictionaries that the noise of seeds allows one to claim.

Tukey's honestly significant difference for all pairs of D dictionaries with n seeds each: the spread within
dictionaries is pooled to ``s`` with D (n - 1) degrees of freedom, and two means differ if they are further apart than
``q s / sqrt(n)``, with q the upper 5% point of the studentized range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95


class Comparison(NamedTuple):
    """Means over seeds of one metric.

    Args:
        means: of each dictionary.
        smallest: difference that can be claimed; NaN with fewer than two seeds or dictionaries.
        claims: pairs of dictionaries, the one of the larger mean first, that differ by more.
    """

    means: dict[str, float]
    smallest: float
    claims: tuple[tuple[str, str], ...]


def compare(values: Mapping[str, Sequence[float]], confidence: float = CONFIDENCE) -> Comparison:
    """Compare dictionaries on one metric.

    Args:
        values: for each dictionary, the metric with each seed; values that are not finite are left out.
        confidence: that no pair without a difference is claimed.
    """
    from scipy.stats import studentized_range

    known = {name: np.array([v for v in seeds if np.isfinite(v)], dtype=np.float64) for name, seeds in values.items()}
    means = {name: float(own.mean()) if len(own) else float("nan") for name, own in known.items()}
    measured = {name: own for name, own in known.items() if len(own)}
    freedom = sum(len(own) - 1 for own in measured.values())
    if len(measured) < 2 or freedom < 1:
        return Comparison(means, float("nan"), ())
    pooled = np.sqrt(sum(((own - own.mean()) ** 2).sum() for own in measured.values()) / freedom)
    n_seeds = min(len(own) for own in measured.values())
    quantile = studentized_range.ppf(confidence, len(measured), freedom)
    smallest = float(quantile * pooled / np.sqrt(n_seeds))
    claims = [
        (first, second) for first in measured for second in measured if means[first] - means[second] > max(smallest, 0)
    ]
    return Comparison(means, smallest, tuple(claims))
