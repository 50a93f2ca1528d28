"""Sparse activations as SAE-Lens's trainer wants to count them.

In every step the trainer sums the (n_tokens, d_sae) activations over the tokens, twice, to learn what fired. PyTorch
answers that by sorting a sparse tensor, which takes a twentieth of our step; adding up by latent takes next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_map
from typing_extensions import override


class CountableActivations(Tensor):
    """A sparse COO tensor (n_tokens, d_sae) whose sum over the tokens is dense; for all else it is `sparse` itself.

    No gradient flows through it: it is for counting.
    """

    sparse: Tensor

    @staticmethod
    def __new__(cls, sparse: Tensor) -> CountableActivations:
        return Tensor._make_wrapper_subclass(
            cls, sparse.shape, dtype=sparse.dtype, layout=sparse.layout, device=sparse.device, requires_grad=False
        )

    def __init__(self, sparse: Tensor) -> None:
        super().__init__()
        self.sparse = sparse.detach()

    @property
    @override
    def is_sparse(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return True

    @classmethod
    def __torch_dispatch__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        plain_args, plain_kwargs = tree_map(lambda t: t.sparse if isinstance(t, cls) else t, (args, kwargs or {}))
        if func is torch.ops.aten.sum.dim_IntList and list(args[1]) in ([0], [-2]) and not plain_kwargs:
            return sum_over_tokens(plain_args[0])
        found = func(*plain_args, **plain_kwargs)
        keeps_places = func is torch.ops.aten._to_copy.default and found.is_sparse
        return cls(found) if keeps_places else found


def sum_over_tokens(activations: Float[Tensor, "n_tokens d_sae"]) -> Float[Tensor, " d_sae"]:
    """`activations.sum(0)` of a sparse COO tensor of two sparse dimensions, as a dense tensor."""
    latents, values = activations._indices()[1], activations._values()
    return values.new_zeros(activations.shape[1]).index_add_(0, latents, values)
