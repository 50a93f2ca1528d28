"""Disjoint sets of patients: to choose on one and to score on another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import numpy as np
from jaxtyping import Int

_BITS = 64


def split_patients(
    patient_ids: Sequence[str], parts: Mapping[str, float], seed: int
) -> dict[str, Int[np.ndarray, " _"]]:
    """Divide studies into disjoint sets of patients.

    A patient's part depends only on the patient's id and the seed: it stays the same when studies are added, left out
    or reordered. The sizes are therefore those of a random draw, close to the wanted shares but not equal to them.

    Args:
        patient_ids: the patient of each study.
        parts: the wanted share of patients for each part; the shares may sum to less than 1, which leaves some out.
        seed: another seed divides the patients in another way.

    Returns:
        for each part, the indices of its studies, in order.

    Raises:
        ValueError: a share is not positive, or the shares sum to more than 1.
    """
    shares = list(parts.values())
    if not all(share > 0 for share in shares) or sum(shares) > 1 + 1e-9:
        raise ValueError(f"Shares are positive and sum to at most 1, but these are {shares}.")
    drawn = {patient: _uniform(patient, seed) for patient in set(patient_ids)}
    values = np.array([drawn[patient] for patient in patient_ids], dtype=np.float64)
    edges = [0.0, *accumulate(shares)]
    if abs(edges[-1] - 1) < 1e-9:
        edges[-1] = np.inf
    pairs = pairwise(edges)
    return {
        name: np.flatnonzero((values >= low) & (values < high)) for name, (low, high) in zip(parts, pairs, strict=True)
    }


def _uniform(patient: str, seed: int) -> float:
    """A number in [0, 1) that looks random but depends only on the arguments."""
    digest = hashlib.sha256(f"{seed}\n{patient}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[: _BITS // 8], "big") / 2**_BITS
