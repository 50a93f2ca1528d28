"""Prefixes of the dictionary: cumulative widths from fractions or sizes, their checks, and random prefixes."""

from __future__ import annotations

from collections.abc import Sequence
from math import isclose

import torch
from jaxtyping import Bool
from torch import Tensor

from sae_lens_maira.errors import ConfigError


def widths_from_fractions(fractions: Sequence[float], d_sae: int) -> list[int]:
    """Cumulative widths; sizes are rounded down and the last group takes the rest, as in dictionary_learning."""
    if any(fraction <= 0 for fraction in fractions) or not isclose(sum(fractions), 1.0, rel_tol=1e-6):
        raise ConfigError(
            f"group_fractions must be positive and sum to 1, but {list(fractions)} sum to {sum(fractions)}."
        )
    sizes = [int(fraction * d_sae) for fraction in fractions[:-1]]
    sizes.append(d_sae - sum(sizes))
    if any(size <= 0 for size in sizes):
        raise ConfigError(
            f"group_fractions {list(fractions)} leave a group without a latent of the {d_sae}: make the dictionary "
            "larger or take fewer groups."
        )
    return widths_from_sizes(sizes, d_sae)


def widths_from_sizes(sizes: Sequence[int], d_sae: int) -> list[int]:
    """Cumulative widths of groups of these sizes."""
    if any(size <= 0 for size in sizes) or sum(sizes) != d_sae:
        raise ConfigError(f"Group sizes must be positive and sum to the {d_sae} latents, but {list(sizes)} do not.")
    return [sum(sizes[: index + 1]) for index in range(len(sizes))]


def sizes_from_widths(widths: Sequence[int]) -> list[int]:
    """Sizes of the groups between cumulative widths."""
    return [width - previous for previous, width in zip([0, *widths[:-1]], widths, strict=True)]


def check_widths(widths: Sequence[int], d_sae: int) -> None:
    """Raise unless the widths rise strictly from above 0 to ``d_sae``."""
    if any(size <= 0 for size in sizes_from_widths(widths)) or widths[-1] != d_sae:
        raise ConfigError(f"matryoshka_widths must rise strictly to d_sae ({d_sae}), but they are {list(widths)}.")


def sample_prefixes(n_prefixes: int, d_sae: int) -> list[int]:
    """``n_prefixes`` distinct widths, the last one ``d_sae``, with density ``width ** -1.5`` (a Pareto law)."""
    if n_prefixes == 1:
        return [d_sae]
    density = torch.arange(1, d_sae, dtype=torch.float64).pow(-1.5)
    drawn = torch.multinomial(density, n_prefixes - 1, replacement=False) + 1
    return [*sorted(drawn.tolist()), d_sae]


def split_into_groups(mask: Bool[Tensor, " d_sae"], widths: Sequence[int]) -> list[Bool[Tensor, " d_sae"]]:
    """The mask within each group of the dictionary and False outside, one mask per group."""
    index = torch.arange(mask.numel(), device=mask.device)
    return [mask & (index >= start) & (index < stop) for start, stop in zip([0, *widths[:-1]], widths, strict=True)]
