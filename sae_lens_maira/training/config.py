"""The training configuration: a dataclass whose mirror is a YAML file in `configs/`."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from sae_lens_maira.data.source import SourceConfig
from sae_lens_maira.data.study import TokenKind
from sae_lens_maira.errors import ConfigError
from sae_lens_maira.rows.policy import TokenPolicy


@dataclass(frozen=True)
class ActivationsConfig:
    """Where activations come from.

    Args:
        cache: a folder written by ``sae-lens-maira cache``; None runs the model while the SAE trains.
        kinds: train on these kinds of tokens only, such as ``[findings]``; None for all.
        run_length: tokens that are read in one piece and stay in one window of the shuffle; None decides by the size
            of the cache (see ``activations/order.py``).
    """

    cache: str | None = None
    kinds: tuple[str, ...] | None = None
    run_length: int | None = None

    def __post_init__(self) -> None:
        known = [kind.name.lower() for kind in TokenKind]
        check_names(self.kinds or (), known, "activations.kinds ")
        if self.run_length is not None and self.run_length < 1:
            raise ConfigError(f"activations.run_length is {self.run_length}; it must be at least 1.")


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Args:
        hook_name: where the SAE reads, such as ``blocks.15.hook_resid_post``.
        context_size: tokens of a row; `describe` says how many would fit all.
        sae: ``architecture`` and that architecture's own settings, with ``expansion_factor`` in place of ``d_sae`` if
            you like; ``d_in`` is the model's.
        saes: SAEs to train in one run on the same tokens, by name: for each its ``hook_name`` and settings of ``sae``,
            where they differ from those above. An entry with its own ``architecture`` takes nothing from ``sae``.
        model: a checkpoint folder, a Hub id, or ``phantom``.
        revision: of a Hub id.
        model_dtype: of the model's weights.
        device: of the SAE, and of the model unless ``device_map`` is given; ``auto`` takes a GPU if there is one.
        device_map: spreads the model over several devices, as in transformers.
        source: where studies come from.
        policy: which tokens are kept.
        activations: a cache to read in place of running the model.
        max_norm_multiple: leave out activations whose norm is more than this many medians (attention sinks); the median
            is that of the first 64 studies' tokens that are trained on.
        shuffle_seed: order of the rows.
        n_eval_batches: batches of held-out rows in the evaluation after training.
        runner: settings of SAE-Lens's ``LanguageModelSAERunnerConfig``, by their own names.
        logger: settings of SAE-Lens's ``LoggingConfig``; Weights & Biases is off unless turned on here.
    """

    hook_name: str
    context_size: int
    sae: dict[str, Any]
    saes: dict[str, dict[str, Any]] = field(default_factory=dict)
    model: str = "phantom"
    revision: str | None = None
    model_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    device_map: str | None = None
    source: SourceConfig = field(default_factory=lambda: SourceConfig(n_studies=2000))
    policy: TokenPolicy = field(default_factory=TokenPolicy)
    activations: ActivationsConfig = field(default_factory=ActivationsConfig)
    max_norm_multiple: float | None = None
    shuffle_seed: int = 0
    n_eval_batches: int = 16
    runner: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if "architecture" not in self.sae:
            raise ConfigError("sae.architecture is missing, such as matryoshka_batchtopk.")
        if ("d_sae" in self.sae) == ("expansion_factor" in self.sae):
            raise ConfigError("Give exactly one of sae.d_sae and sae.expansion_factor.")
        if self.max_norm_multiple is not None and self.max_norm_multiple <= 1:
            raise ConfigError(f"max_norm_multiple {self.max_norm_multiple} would leave out half of all tokens or more.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in a YAML file."""
        return {**dataclasses.asdict(self), "policy": self.policy.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The inverse of :meth:`to_dict`.

        Raises:
            ConfigError: a setting is unknown or wrong.
        """
        check_names(values, (entry.name for entry in fields(cls)), "")
        missing = [name for name in ("hook_name", "context_size", "sae") if name not in values]
        if missing:
            raise ConfigError(f"The configuration lacks {', '.join(missing)}.")
        known = dict(values)
        for name in ("source", "policy", "activations", "sae", "saes", "runner", "logger"):
            if not isinstance(known.get(name, {}), Mapping):
                raise ConfigError(f"'{name}' must be a group of settings, not '{known[name]}'.")
        if "source" in known:
            check_names(known["source"], (entry.name for entry in fields(SourceConfig)), "source.")
            known["source"] = SourceConfig(**known["source"])
        if "policy" in known:
            check_names(known["policy"], (entry.name for entry in fields(TokenPolicy)), "policy.")
            known["policy"] = TokenPolicy.from_dict(known["policy"])
        if "activations" in known:
            group = dict(known["activations"])
            check_names(group, (entry.name for entry in fields(ActivationsConfig)), "activations.")
            if group.get("kinds") is not None:
                group["kinds"] = tuple(group["kinds"])
            known["activations"] = ActivationsConfig(**group)
        return cls(**known)


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML file.

    Args:
        path: of the file.
        overrides: ``--key value`` pairs as from a command line; a dot reaches into a group: ``--sae.k 64``.

    Raises:
        ConfigError: the file is missing or broken, or a setting is unknown or wrong.
    """
    return TrainConfig.from_dict(read_settings(path, overrides))


def read_settings(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A YAML file's settings with those of a command line, as plain values; names are not checked.

    Raises:
        ConfigError: the file is missing or broken, or an override is.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"There is no configuration '{path}'.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"'{path}' is not valid YAML ({error}).") from error
    if not isinstance(values, dict):
        raise ConfigError(f"'{path}' holds no settings.")
    for name, value in _pairs(overrides):
        *groups, last = name.split(".")
        target = values
        for group in groups:
            target = target.setdefault(group, {})
            if not isinstance(target, dict):
                raise ConfigError(f"--{name}: '{group}' is no group of settings.")
        target[last] = value
    return values


def check_names(values: Iterable[str], known: Iterable[str], prefix: str) -> None:
    """Refuse unknown names.

    Raises:
        ConfigError: naming the first unknown setting and those that are close to it.
    """
    names = list(known)
    for name in values:
        if name not in names:
            close = difflib.get_close_matches(str(name), names, n=2)
            hint = f"; did you mean {' or '.join(prefix + match for match in close)}?" if close else "."
            raise ConfigError(f"Unknown setting '{prefix}{name}'{hint}")


def _pairs(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    remaining = list(overrides)
    while remaining:
        key = remaining.pop(0)
        if not key.startswith("--"):
            raise ConfigError(f"'{key}' is no setting; write --name value.")
        name, equals, value = key[2:].partition("=")
        if not equals:
            if not remaining:
                raise ConfigError(f"--{name} lacks a value.")
            value = remaining.pop(0)
        pairs.append((name, _scalar(value)))
    return pairs


def _scalar(text: str) -> Any:
    value = yaml.safe_load(text)
    if isinstance(value, str):
        try:  # YAML reads 1e-3 as text
            return float(value)
        except ValueError:
            return value
    return value
