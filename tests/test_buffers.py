"""Memory is reused once no tensor refers to it, and never before."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_lens_maira import buffers
from sae_lens_maira.buffers import BufferPool

SHAPE = (6, 8)
WAYS_TO_LOOK: dict[str, Callable[[Tensor], Any]] = {
    "the tensor": lambda tensor: tensor,
    "view": lambda tensor: tensor.view(-1),
    "slice": lambda tensor: tensor[2:, ::2],
    "row": lambda tensor: tensor[3],
    "transpose": lambda tensor: tensor.T,
    "detach": lambda tensor: tensor.detach(),
    "to without a copy": lambda tensor: tensor.to("cpu", torch.float32),
    "other dtype": lambda tensor: tensor.view(torch.int32),
    "parameter": lambda tensor: torch.nn.Parameter(tensor),
    "numpy": lambda tensor: tensor.numpy(),
    "slice of numpy": lambda tensor: tensor.numpy()[1:, 3:],
    "view of a slice of numpy": lambda tensor: tensor.numpy()[1:].reshape(-1).view(np.int32),
    "tensor of numpy": lambda tensor: torch.from_numpy(tensor.numpy()[2:]),
    "DLPack": lambda tensor: torch.from_dlpack(tensor),
    "storage": lambda tensor: tensor.untyped_storage(),
    "memoryview": lambda tensor: memoryview(tensor.numpy()),  # pyright: ignore[reportArgumentType]
    "autograd graph": lambda tensor: tensor * torch.ones(SHAPE, requires_grad=True),
}


def address(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()


@pytest.mark.parametrize("way", WAYS_TO_LOOK)
def test_memory_is_used_again_only_when_nothing_looks_at_it(way: str) -> None:
    pool = BufferPool()
    tensor = pool.empty(SHAPE, torch.float32)
    first = address(tensor)
    looking = WAYS_TO_LOOK[way](tensor)
    del tensor
    gc.collect()
    others = [pool.empty(SHAPE, torch.float32) for _ in range(6)]
    assert first not in {address(other) for other in others}
    del looking
    gc.collect()
    assert address(pool.empty(SHAPE, torch.float32)) == first


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(WAYS_TO_LOOK)), st.booleans(), st.integers(0, 5)), max_size=30))
def test_whatever_is_alive_keeps_its_values(moves: list[tuple[str, bool, int]]) -> None:
    """Take a buffer, keep some view of it, drop an older view: live views must never change."""
    pool, alive = BufferPool(max_unused=2), []
    for number, (way, drops, index) in enumerate(moves):
        tensor = pool.empty((index + 1, 8), torch.float32).fill_(number)
        view = tensor.view(-1)[-8:]
        alive.append((view.numpy() if way.endswith("numpy") else view[::2], number))
        del tensor, view
        if drops:
            alive.pop(index % len(alive))
        assert all((np.asarray(values) == expected).all() for values, expected in alive)


def test_only_so_many_unused_buffers_are_kept_and_only_of_the_same_size() -> None:
    pool = BufferPool(max_unused=2)
    tensors = [pool.empty((n, 4), torch.float32) for n in (1, 2, 3)]
    places = [address(tensor) for tensor in tensors]
    for _ in range(3):
        tensors.pop(0)
    assert [buffer.nbytes for buffer in pool._unused] == [32, 48]
    assert address(pool.empty((4, 2), torch.float32)) == places[1]
    assert address(pool.empty((6, 4), torch.bfloat16)) == places[2]


def test_a_pool_that_is_gone_leaves_its_tensors_alone() -> None:
    tensor = BufferPool().empty(SHAPE, torch.float64).fill_(3)
    gc.collect()
    assert bool((tensor == 3).all())


def test_empty_tensors_and_other_devices_are_those_of_torch() -> None:
    pool = BufferPool()
    assert pool.empty((0, 4), torch.float32).shape == (0, 4)
    assert pool.empty((2,), torch.float32, "meta").device.type == "meta"


def test_the_module_needs_neither_sae_lens_nor_transformers() -> None:
    """Loaded by itself, since importing the package loads more."""
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('buffers', {buffers.__file__!r})\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "print([name for name in ('sae_lens', 'transformers', 'sae_lens_maira') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
