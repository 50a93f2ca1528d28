"""Large CPU buffers that are used again from step to step.

A tensor over 32 MiB is mapped afresh by the C library each time and returned to the system afterwards; the page faults
cost several times what writing to it does. A recycled buffer goes back to its pool when the last tensor that looks at
its memory is gone, so it can never be written while something, such as a retained autograd graph, still reads it.
CUDA's caching allocator does this by itself.
"""

from __future__ import annotations

import weakref
from math import prod

import numpy as np
import torch

MAX_POOLED = 2
"""Buffers of one size that are kept while nobody uses them."""

_POOLS: dict[int, list[np.ndarray]] = {}


def recycled_empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """`torch.empty`, from the pool on a CPU."""
    n_bytes = prod(shape) * dtype.itemsize
    if device.type != "cpu" or n_bytes == 0:
        return torch.empty(shape, dtype=dtype, device=device)
    pool = _POOLS.setdefault(n_bytes, [])
    buffer = pool.pop() if pool else np.empty(n_bytes, dtype=np.uint8)
    # The tensor's storage owns this view; the view's end is the end of every tensor on the memory.
    view = buffer[:]
    weakref.finalize(view, _give_back, pool, buffer).atexit = False
    return torch.from_numpy(view).view(dtype).view(shape)


def _give_back(pool: list[np.ndarray], buffer: np.ndarray) -> None:
    if len(pool) < MAX_POOLED:
        pool.append(buffer)
