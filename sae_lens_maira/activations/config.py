"""What to cache: the mirror of a YAML such as `configs/cache_phantom.yaml`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from sae_lens_maira.errors import ConfigError
from sae_lens_maira.rows.policy import TokenPolicy
from sae_lens_maira.training.config import SourceConfig, check_names, read_settings

DtypeName = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class CacheSettings:
    """How activations are cached.

    Args:
        hook_names: hook points, all cached in one pass.
        dtype: of the stored activations.
        context_size: cut rows to so many tokens, as training does; None keeps them whole.
        unit_size: studies of a unit, which is one file and what a killed run loses at the most.
        max_batch_tokens: studies a forward times the longest prompt among them, if that is more than one study.
        workers: threads that open and process images.
        decode_ahead: studies that are ready or being prepared before the model asks for them.
        max_skipped_share: stop when more than this share of the studies cannot be used.
    """

    hook_names: tuple[str, ...]
    dtype: DtypeName = "float16"
    context_size: int | None = None
    unit_size: int = 256
    max_batch_tokens: int = 8192
    workers: int = 2
    decode_ahead: int = 32
    max_skipped_share: float = 0.05

    def __post_init__(self) -> None:
        if isinstance(self.hook_names, str) or not self.hook_names:
            raise ConfigError("cache.hook_names must be a list of hook points, such as [blocks.15.hook_resid_post].")
        if len(set(self.hook_names)) != len(self.hook_names):
            raise ConfigError("cache.hook_names names a hook point twice.")
        if self.dtype not in get_args(DtypeName):
            raise ConfigError(f"cache.dtype '{self.dtype}' is unknown; choose float32, bfloat16 or float16.")
        for name in ("unit_size", "max_batch_tokens", "workers", "decode_ahead"):
            if getattr(self, name) < 1:
                raise ConfigError(f"cache.{name} is {getattr(self, name)}; it must be at least 1.")
        if self.context_size is not None and self.context_size < 1:
            raise ConfigError(f"cache.context_size is {self.context_size}; leave it out to keep rows whole.")
        if not 0 <= self.max_skipped_share <= 1:
            raise ConfigError(f"cache.max_skipped_share is {self.max_skipped_share}; it is a share, from 0 to 1.")

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of the stored activations."""
        return getattr(torch, self.dtype)


@dataclass(frozen=True)
class CacheConfig:
    """One cache.

    Args:
        cache: how activations are cached.
        model: a checkpoint folder, a Hub id, or ``phantom``.
        revision: of a Hub id.
        model_dtype: of the model's weights.
        device: of the model unless ``device_map`` is given; ``auto`` takes a GPU if there is one.
        device_map: spreads the model over several devices, as in transformers.
        source: where studies come from; all of them are cached, those held out of training too.
        policy: which tokens are kept.
    """

    cache: CacheSettings
    model: str = "phantom"
    revision: str | None = None
    model_dtype: DtypeName = "float32"
    device: str = "auto"
    device_map: str | None = None
    source: SourceConfig = field(default_factory=lambda: SourceConfig(n_studies=2000))
    policy: TokenPolicy = field(default_factory=TokenPolicy)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CacheConfig:
        """From plain values, as in a YAML file.

        Raises:
            ConfigError: a setting is unknown or wrong.
        """
        check_names(values, (entry.name for entry in fields(cls)), "")
        known = dict(values)
        for name, kind in (("cache", CacheSettings), ("source", SourceConfig), ("policy", TokenPolicy)):
            group = known.get(name, {})
            if not isinstance(group, Mapping):
                raise ConfigError(f"'{name}' must be a group of settings, not '{group}'.")
            check_names(group, (entry.name for entry in fields(kind)), f"{name}.")
        if "hook_names" not in known.get("cache", {}):
            raise ConfigError("cache.hook_names is missing: a list of hook points.")
        names = known["cache"]["hook_names"]
        known["cache"] = CacheSettings(
            **{**known["cache"], "hook_names": (names,) if isinstance(names, str) else tuple(names)}
        )
        if "source" in known:
            known["source"] = SourceConfig(**known["source"])
        if "policy" in known:
            known["policy"] = TokenPolicy.from_dict(known["policy"])
        return cls(**known)


def load_cache_config(path: Path, overrides: list[str]) -> CacheConfig:
    """Read a YAML file and ``--key value`` pairs.

    Raises:
        ConfigError: the file is missing or broken, or a setting is unknown or wrong.
    """
    return CacheConfig.from_dict(read_settings(path, overrides))


@dataclass(frozen=True)
class Shard:
    """A share of the units of work: those whose number modulo ``count`` is ``index``."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ConfigError(f"There is no shard {self.index}/{self.count}; the first is 0/{max(self.count, 1)}.")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From ``i/n``, counted from 0.

        Raises:
            ConfigError: it is not of that form.
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
