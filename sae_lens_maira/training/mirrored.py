"""Checks the groups ``sae``, ``runner`` and ``logger`` against SAE-Lens's dataclasses, which they mirror."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, get_type_hints

from annotated_types import Ge, Gt

from sae_lens_maira.errors import ConfigError
from sae_lens_maira.setting_values import check_names, convert
from sae_lens_maira.training.config import TrainConfig

# Set by this package; refused in `runner`.
_OWN_RUNNER_FIELDS = {
    "sae",
    "saes",
    "hook_names",
    "hook_head_index",
    "hook_head_indices",
    "model_name",
    "model_class_name",
    "hook_name",
    "context_size",
    "dataset_path",
    "is_dataset_tokenized",
    "prepend_bos",
    "seqpos_slice",
    "exclude_special_tokens",
    "device",
    "logger",
    "output_path",
    "checkpoint_path",
    "resume_from_checkpoint",
}
# Limits that SAE-Lens's annotations do not contain.
_LIMITS: dict[str, Any] = {
    "training_tokens": Ge(1),
    "train_batch_size_tokens": Ge(1),
    "store_batch_size_prompts": Ge(1),
    "n_batches_in_buffer": Ge(1),
    "dead_feature_window": Ge(1),
    "feature_sampling_window": Ge(1),
    "lr": Gt(0),
    "lr_warm_up_steps": Ge(0),
    "lr_decay_steps": Ge(0),
    "n_checkpoints": Ge(0),
    "seed": Ge(0),
    "d_sae": Ge(1),
    "expansion_factor": Gt(0),
    "k": Gt(0),
}


def with_sae_lens_types(config: TrainConfig) -> TrainConfig:
    """A copy of a configuration whose mirrored settings are converted to SAE-Lens's types.

    Raises:
        ConfigError: SAE-Lens does not know a setting, or gives it another type; the message names it.
    """
    from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig
    from sae_lens.multi_sae_training_runner import MultiSAETrainingRunnerConfig

    runner_hints = _hints(MultiSAETrainingRunnerConfig if config.saes else LanguageModelSAERunnerConfig)
    runner = _typed(config.runner, _without_own(runner_hints), "runner.")
    if runner.get("prefetch_llm_batches"):
        raise ConfigError(
            "runner.prefetch_llm_batches takes batches from the data before they are trained on, so a resumed run "
            "would miss them; leave it out."
        )
    sae_hints = {"architecture": str, "expansion_factor": float, **_hints(architecture_config(config.sae))}
    return replace(
        config,
        runner=runner,
        logger=_typed(config.logger, _hints(LoggingConfig), "logger."),
        sae=_typed(config.sae, sae_hints, "sae."),
    )


def architecture_config(settings: Mapping[str, Any]) -> Any:
    """SAE-Lens's configuration class of an architecture.

    Raises:
        ConfigError: the architecture is unknown.
    """
    from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY, get_sae_training_class

    architecture = settings["architecture"]
    if architecture not in SAE_TRAINING_CLASS_REGISTRY:
        known = ", ".join(sorted(SAE_TRAINING_CLASS_REGISTRY))
        raise ConfigError(f"sae.architecture '{architecture}' is unknown; SAE-Lens has {known}.")
    return get_sae_training_class(architecture)[1]


def _without_own(hints: Mapping[str, Any]) -> dict[str, Any]:
    return {name: hint for name, hint in hints.items() if name not in _OWN_RUNNER_FIELDS and name[0] != "_"}


def _typed(values: Mapping[str, Any], hints: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    check_names(values, hints, prefix)
    typed: dict[str, Any] = {}
    for name, value in values.items():
        hint = Annotated[hints[name], _LIMITS[name]] if name in _LIMITS else hints[name]
        typed[name] = convert(hint, value, f"{prefix}{name}")
    return typed


def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {entry.name: hints[entry.name] for entry in dataclasses.fields(kind)}
