"""SAE-Lens's own configurations, made from a TrainConfig: for a run of one SAE, and for a run of several."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig
from sae_lens.multi_sae_training_runner import MultiSAETrainingRunnerConfig

from sae_lens_maira.errors import ConfigError
from sae_lens_maira.setting_values import check_names
from sae_lens_maira.training.config import TrainConfig
from sae_lens_maira.training.mirrored import architecture_config, with_sae_lens_types

if TYPE_CHECKING:
    from sae_lens_maira.hooked import HookedVisionLanguageModel


def to_runner_config(
    config: TrainConfig, model: HookedVisionLanguageModel, path: Path
) -> LanguageModelSAERunnerConfig[Any]:
    """The configuration of SAE-Lens's runner of one SAE.

    Raises:
        ConfigError: SAE-Lens does not know a setting, or it does not fit the model; the message names it.
    """
    config = with_sae_lens_types(config)
    settings = _shared_settings(config, model, path)
    _check_hook_name(config.hook_name, model)
    sae = sae_config(config.sae, model.cfg.d_model)
    with _as_config_errors("runner"):
        runner: LanguageModelSAERunnerConfig[Any] = LanguageModelSAERunnerConfig(
            **{"verbose": False, **settings}, sae=sae, hook_name=config.hook_name
        )
    runner.checkpoint_path = checkpoint_path(path)
    return runner


def to_multi_runner_config(
    config: TrainConfig, model: HookedVisionLanguageModel, path: Path
) -> MultiSAETrainingRunnerConfig:
    """The configuration of SAE-Lens's runner of several SAEs.

    Raises:
        ConfigError: SAE-Lens does not know a setting, or it does not fit the model; the message names it.
    """
    config = with_sae_lens_types(config)
    settings = _shared_settings(config, model, path)
    alone = single_configs(config)
    for own in alone.values():
        _check_hook_name(own.hook_name, model)
    saes = {name: sae_config(own.sae, model.cfg.d_model) for name, own in alone.items()}
    with _as_config_errors("runner"):
        runner = MultiSAETrainingRunnerConfig(
            **settings, saes=saes, hook_names={name: own.hook_name for name, own in alone.items()}
        )
    runner.checkpoint_path = checkpoint_path(path)
    return runner


def single_configs(config: TrainConfig) -> dict[str, TrainConfig]:
    """The configuration of each SAE of a run of several, as if it were trained alone."""
    found: dict[str, TrainConfig] = {}
    for name, entry in config.saes.items():
        if not isinstance(entry, Mapping):
            raise ConfigError(f"saes.{name} must be a group of settings, not '{entry}'.")
        settings = dict(entry)
        hook_name = settings.pop("hook_name", config.hook_name)
        defaults = {} if "architecture" in settings else dict(config.sae)
        if settings.keys() & {"d_sae", "expansion_factor"}:
            defaults = {key: value for key, value in defaults.items() if key not in ("d_sae", "expansion_factor")}
        found[name] = dataclasses.replace(config, hook_name=hook_name, sae={**defaults, **settings}, saes={})
    return found


def checkpoint_path(path: Path) -> str:
    """Where a run's checkpoints are kept. SAE-Lens would append a random name, which a resumed run does not know."""
    return str(path / "checkpoints")


def _shared_settings(config: TrainConfig, model: HookedVisionLanguageModel, path: Path) -> dict[str, Any]:
    """Settings of both of SAE-Lens's configurations."""
    leaves_out_study_token = config.policy.image_tokens == "none"
    return {
        **config.runner,
        "model_name": config.model.name,
        "model_class_name": "HookedMaira2",
        "context_size": config.context_size,
        "dataset_path": config.source.kind,
        "prepend_bos": False,
        "seqpos_slice": (1, None) if leaves_out_study_token else (None,),
        "exclude_special_tokens": [model.tokenizer.pad_token_id],
        "device": config.model.find_device(),
        "output_path": str(path),
        "logger": LoggingConfig(**{"log_to_wandb": False, **config.logger}),
    }


def _check_hook_name(hook_name: str, model: HookedVisionLanguageModel) -> None:
    if hook_name not in model.hook_dict:
        check_names([hook_name], model.hook_dict, "hook_name ")


def sae_config(settings: dict[str, Any], d_model: int) -> Any:
    """SAE-Lens's training configuration of an architecture.

    Args:
        settings: ``architecture`` and its settings.
        d_model: the model's width.

    Raises:
        ConfigError: the architecture or a setting is unknown, or ``d_in`` is not the model's width.
    """
    settings = dict(settings)
    config_class = architecture_config(settings)
    del settings["architecture"]
    expansion_factor = settings.pop("expansion_factor", None)
    if expansion_factor is not None:
        settings["d_sae"] = int(expansion_factor * d_model)
    check_names(settings, (entry.name for entry in dataclasses.fields(config_class)), "sae.")
    if settings.get("d_in", d_model) != d_model:
        raise ConfigError(f"sae.d_in is {settings['d_in']}, but the model's width is {d_model}; leave it out.")
    with _as_config_errors("sae"):
        return config_class(**{**settings, "d_in": d_model})


@contextmanager
def _as_config_errors(group: str) -> Iterator[None]:
    """Turn SAE-Lens's errors about a group of settings into :class:`~sae_lens_maira.errors.ConfigError`."""
    try:
        yield
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{group}: {error}") from error
