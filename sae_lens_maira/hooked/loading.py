"""Loads the model that a configuration names, for training, caches, dashboards and reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sae_lens_maira.data.study import Study
from sae_lens_maira.hooked.maira2 import HookedMaira2
from sae_lens_maira.maira2 import Maira2ForConditionalGeneration, Maira2Processor
from sae_lens_maira.rows.policy import TokenPolicy
from sae_lens_maira.settings import ModelConfig


def load_model(config: ModelConfig, studies: Sequence[Study] = (), policy: TokenPolicy | None = None) -> HookedMaira2:
    """The model that a configuration names, bound to studies and a token policy.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or not accessible.
        ConfigError: there is no such device.
    """
    return HookedMaira2.from_pretrained(config.name, studies, policy, **_placement(config))


def load_generator(config: ModelConfig) -> tuple[Any, Maira2Processor]:
    """The model and its processor, as transformers classes without hook points.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or not accessible.
        ConfigError: there is no such device.
    """
    model = Maira2ForConditionalGeneration.from_pretrained(_path(config), **_placement(config))
    return model.eval(), load_processor(config)


def load_processor(config: ModelConfig) -> Maira2Processor:
    """The model's processor alone.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or not accessible.
    """
    return Maira2Processor.from_pretrained(_path(config), **_revision(config))


def _path(config: ModelConfig) -> str:
    from sae_lens_maira.phantom.model.pretrained import PHANTOM_PATH

    return str(PHANTOM_PATH) if config.name == "phantom" else config.name


def _placement(config: ModelConfig) -> dict[str, Any]:
    device = config.find_device()
    dtype: Any = "auto" if config.dtype == "auto" else getattr(torch, config.dtype)
    if config.dtype == "auto" and device.startswith("cuda"):
        dtype = torch.bfloat16
    return {"dtype": dtype, "device_map": config.device_map or {"": device}, **_revision(config)}


def _revision(config: ModelConfig) -> dict[str, Any]:
    return {} if config.revision is None else {"revision": config.revision}
