"""Weights and configurations of other libraries, of which nothing is taken for granted."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from sae_lens_maira.errors import SaeFormatError, printable, quoted
from sae_lens_maira.files import from_json


def load_tensors(path: Path) -> dict[str, Any]:
    """The state dict in a ``.safetensors`` file, or in a file of PyTorch, of which only tensors are loaded.

    Raises:
        SaeFormatError: the file is damaged, or holds more than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SaeFormatError(
            f"{path} holds more than tensors and is refused, because loading it could run code."
        ) from error
    except Exception as error:  # damaged files end in any exception inside of PyTorch and safetensors
        reader = "safetensors" if path.suffix == ".safetensors" else "PyTorch"
        raise SaeFormatError(f"{path} is not a file that {reader} can read; copy or download it again.") from error
    if not isinstance(state, dict):
        raise SaeFormatError(f"{path} holds a {type(state).__name__}, not a state dict.")
    return state


def read_shape(path: Path, name: str) -> tuple[int, ...] | None:
    """The shape of a tensor in a ``.safetensors`` file, of which only the header is read; None if it has no such one.

    Raises:
        SaeFormatError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return tuple(file.get_slice(name).get_shape()) if name in file.keys() else None  # noqa: SIM118
    except Exception as error:  # as above
        raise SaeFormatError(f"{path} is not a file that safetensors can read; copy or download it again.") from error


def load_object(path: Path) -> dict[str, Any]:
    """A JSON file's one object.

    Raises:
        SaeFormatError: it holds none.
    """
    try:
        config = from_json(path.read_bytes())
    except (ValueError, OSError) as error:
        raise SaeFormatError(f"{path} is not JSON ({printable(error)}).") from error
    if not isinstance(config, dict):
        raise SaeFormatError(f"{path} holds no JSON object.")
    return config


def group_of(config: dict[str, Any], name: str, source: str) -> dict[str, Any]:
    """A group of a configuration's settings; empty where there is none."""
    group = config.get(name)
    if group is not None and not isinstance(group, dict):
        raise SaeFormatError(f"{name} in the configuration of {source} is {quoted(group)}; it must be an object.")
    return group or {}


def whole_number(value: Any, name: str, source: str) -> int:
    """A value that must be a whole number.

    Raises:
        SaeFormatError: it is something else, or larger than any size of an SAE.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or value != value or abs(value) >= 1 << 31 or value != int(value):
        raise SaeFormatError(f"{name} of {source} is {quoted(value)}; it must be a whole number.")
    return int(value)


def plain_value(value: Any) -> Any:
    """A small tensor as numbers; everything else as it is."""
    if not isinstance(value, Tensor):
        return value
    if value.layout != torch.strided or value.is_meta or value.is_quantized or value.numel() > 1 << 20:
        return str(value.layout)
    return value.tolist()


def dense_tensor(tensor: Any, name: str, source: str, *, transposed: bool = False) -> Tensor:
    """The values of a tensor in float32.

    Raises:
        SaeFormatError: it has none, or others than real numbers.
    """
    if not isinstance(tensor, Tensor):
        raise SaeFormatError(f"{name} in {source} is no tensor but a {type(tensor).__name__}.")
    kind = next(
        (
            word
            for word, is_so in (
                ("meta", tensor.is_meta),
                ("quantized", tensor.is_quantized),
                ("nested", tensor.is_nested),
                ("sparse", tensor.layout != torch.strided),
            )
            if is_so
        ),
        None,
    )
    if kind is not None:
        raise SaeFormatError(f"{name} in {source} is a {kind} tensor; save it as a dense one.")
    if not tensor.is_floating_point():
        raise SaeFormatError(f"{name} in {source} has the type {tensor.dtype}; it must hold real numbers, as float32.")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise SaeFormatError(f"{name} in {source} repeats its values; save it as a contiguous tensor.")
    if transposed and tensor.ndim != 2:
        raise SaeFormatError(f"{name} in {source} has shape {tuple(tensor.shape)}, not two dimensions.")
    return (tensor.T if transposed else tensor).detach().float().contiguous()
