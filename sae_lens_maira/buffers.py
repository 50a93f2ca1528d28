"""Large CPU buffers that are used again.

A tensor over 32 MiB is mapped afresh by the C library each time and returned to the system afterwards, and the page
faults cost several times what writing to it does. A :class:`BufferPool` hands the same memory out again once nothing
can see it any more:

1. each tensor that it gives lies on a NumPy view of a buffer, which PyTorch keeps alive as long as any tensor, view or
   array shares the memory, a retained autograd graph included;
2. the end of that NumPy view gives the buffer back to the pool (:func:`weakref.finalize`).

CUDA's caching allocator does this by itself.
"""

from __future__ import annotations

import weakref
from collections import deque
from math import prod

import numpy as np
import torch
from torch import Tensor


class BufferPool:
    """Memory that is handed out again, to tensors of the same number of bytes.

    Args:
        max_unused: Buffers that are kept while nothing uses them; the one that came back first is freed first.
    """

    def __init__(self, max_unused: int = 4) -> None:
        # Finalizers run in whichever thread drops the last reference; a deque's ends are safe to share.
        self._unused: deque[np.ndarray] = deque(maxlen=max_unused)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """``torch.empty``, in the pool's memory on a CPU."""
        n_bytes = prod(shape) * dtype.itemsize
        if torch.device(device).type != "cpu" or n_bytes == 0:
            return torch.empty(shape, dtype=dtype, device=device)
        buffer = self._take(n_bytes)
        view = buffer[:]
        weakref.finalize(view, self._unused.append, buffer).atexit = False
        return torch.from_numpy(view).view(dtype).view(shape)

    def _take(self, n_bytes: int) -> np.ndarray:
        for _ in range(len(self._unused)):
            try:
                buffer = self._unused.pop()
            except IndexError:  # another thread took the last one
                break
            if buffer.nbytes == n_bytes:
                return buffer
            self._unused.appendleft(buffer)
        return np.empty(n_bytes, dtype=np.uint8)
