"""Settings of an activation cache, as in a YAML file such as ``configs/cache_phantom.yaml``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens_maira.data.source import PhantomConfig, SourceConfig
from sae_lens_maira.errors import ConfigError
from sae_lens_maira.rows.policy import TokenPolicy
from sae_lens_maira.setting_values import read_yaml
from sae_lens_maira.settings import AtLeastOne, DtypeName, ModelConfig, Settings, Share, overlay

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class WriteConfig(Settings):
    """How the activations of a model are written.

    Args:
        hook_names: hook points, such as ``[blocks.15.hook_resid_post]``; all are cached in one pass.
        dtype: data type of the stored activations.
        context_size: cut rows to this many tokens, as in training; null keeps whole rows.
        unit_size: studies per unit. A unit is one file, and the most work that a killed run loses.
        max_batch_tokens: padded tokens per forward pass; a study longer than this runs alone.
        workers: threads that open and process images.
        decode_ahead: studies whose images are prepared ahead of the model.
        max_skipped_share: stop when more than this share of the studies cannot be used.
    """

    hook_names: tuple[str, ...]
    dtype: DtypeName = "float16"
    context_size: AtLeastOne | None = None
    unit_size: AtLeastOne = 256
    max_batch_tokens: AtLeastOne = 8192
    workers: AtLeastOne = 2
    decode_ahead: AtLeastOne = 32
    max_skipped_share: Share = 0.05

    def check(self) -> None:
        if not self.hook_names:
            raise ConfigError("hook_names is empty; give hook points, such as [blocks.15.hook_resid_post].")
        if len(set(self.hook_names)) != len(self.hook_names):
            raise ConfigError("hook_names names a hook point twice.")

    @property
    def torch_dtype(self) -> torch.dtype:
        """Data type of the stored activations."""
        import torch

        return getattr(torch, self.dtype)


@dataclass(frozen=True)
class CacheConfig(WriteConfig):
    """One cache: its model, its studies, and how it is written.

    Args:
        model: the model whose activations are cached.
        source: where studies come from; all of them are cached, including those held out of training.
        policy: which tokens are kept.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    source: SourceConfig = field(default_factory=lambda: PhantomConfig(n_studies=2000))
    policy: TokenPolicy = field(default_factory=TokenPolicy)


def load_cache_config(path: Path, given: Mapping[str, Any] | None = None) -> CacheConfig:
    """Read a YAML file.

    Args:
        path: the file.
        given: settings that override the file's, in the same form.

    Raises:
        ConfigError: the file is missing or broken, or a setting is unknown or wrong.
    """
    return CacheConfig.from_dict(overlay(read_yaml(path), given or {}))


@dataclass(frozen=True)
class Shard:
    """A part of the work: the units whose number modulo ``count`` is ``index``."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ConfigError(f"There is no shard {self.index}/{self.count}; the first is 0/{max(self.count, 1)}.")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parse ``i/n``, where i counts from 0.

        Raises:
            ConfigError: the text is not of that form.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None:
            raise ConfigError(f"--shard is '{text}'; write i/n, such as 0/4 for the first of four.")
        return cls(int(match[1]), int(match[2]))

    def of(self, n_units: int) -> range:
        """The numbers of this shard's units."""
        return range(self.index, n_units, self.count)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"
