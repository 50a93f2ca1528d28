"""The training configuration: a dataclass that mirrors a YAML file such as those in ``configs/``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_lens_maira.data.source import PhantomConfig, SourceConfig
from sae_lens_maira.data.study import TokenKind
from sae_lens_maira.errors import ConfigError
from sae_lens_maira.rows.policy import TokenPolicy
from sae_lens_maira.setting_values import check_names, read_yaml
from sae_lens_maira.settings import AtLeastOne, AtLeastZero, ModelConfig, Settings, Share, overlay


@dataclass(frozen=True)
class ActivationsConfig(Settings):
    """Where activations come from.

    Args:
        cache: a folder written by ``sae-lens-maira cache``; null runs the model while the SAE trains.
        kinds: train only on these kinds of tokens, such as ``[findings]``; null for all.
        run_length: number of neighboring tokens that are read together and stay in one window of the shuffle; null
            chooses it by the size of the cache (see ``activations/shuffle.py``).
    """

    GROUP = "activations."

    cache: str | None = None
    kinds: tuple[str, ...] | None = None
    run_length: AtLeastOne | None = None

    def check(self) -> None:
        known = [kind.name.lower() for kind in TokenKind]
        check_names(self.kinds or (), known, "activations.kinds ")


@dataclass(frozen=True)
class TrainConfig(Settings):
    """One training run.

    Args:
        hook_name: the SAE's hook point, such as ``blocks.15.hook_resid_post``.
        context_size: tokens per row; longer rows are cut, and their number is logged.
        sae: ``architecture``, one of ``d_sae`` and ``expansion_factor`` (d_sae divided by the model's width), and the
            architecture's own settings; ``d_in`` is the model's width.
        saes: several SAEs to train in one run on the same tokens: each SAE's name, its ``hook_name``, and its settings
            that differ from ``sae``. An entry that gives an ``architecture`` takes nothing from ``sae``.
        model: the model whose activations are read.
        source: where studies come from.
        policy: which tokens are kept.
        activations: which activations to train on, and the cache to read instead of running the model.
        max_norm_multiple: leave out activations whose norm is more than this many times the median (attention sinks);
            the median is computed over the training tokens of the first 64 studies.
        max_skipped_share: stop when more than this share of the studies has images that cannot be used; fewer are left
            out. It may change when a run is resumed.
        shuffle_seed: determines the order of the rows.
        n_eval_batches: number of batches of held-out rows in the evaluation after training.
        runner: settings of SAE-Lens's ``LanguageModelSAERunnerConfig``, by their own names.
        logger: settings of SAE-Lens's ``LoggingConfig``; Weights & Biases is off unless turned on here.
    """

    hook_name: str
    context_size: AtLeastOne
    sae: dict[str, Any]
    saes: dict[str, dict[str, Any]] = field(default_factory=dict)
    model: ModelConfig = field(default_factory=ModelConfig)
    source: SourceConfig = field(default_factory=lambda: PhantomConfig(n_studies=2000))
    policy: TokenPolicy = field(default_factory=TokenPolicy)
    activations: ActivationsConfig = field(default_factory=ActivationsConfig)
    max_norm_multiple: float | None = None
    max_skipped_share: Share = 0.05
    shuffle_seed: AtLeastZero = 0
    n_eval_batches: AtLeastOne = 16
    runner: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        if "architecture" not in self.sae:
            raise ConfigError("sae.architecture is missing, such as matryoshka_batchtopk.")
        if ("d_sae" in self.sae) == ("expansion_factor" in self.sae):
            raise ConfigError("Give exactly one of sae.d_sae and sae.expansion_factor.")
        if self.max_norm_multiple is not None and self.max_norm_multiple <= 1:
            raise ConfigError(f"max_norm_multiple {self.max_norm_multiple} would leave out half of all tokens or more.")

    def identity(self) -> dict[str, Any]:
        """The settings that decide what a run trains, as plain values; a resumed run has the same."""
        return {name: value for name, value in self.to_dict().items() if name != "max_skipped_share"}


def load_config(path: Path, given: Mapping[str, Any] | None = None) -> TrainConfig:
    """Read a YAML file.

    Args:
        path: the file.
        given: settings that override the file's, in the same form.

    Raises:
        ConfigError: the file is missing or broken, or a setting is unknown or wrong.
    """
    return TrainConfig.from_dict(overlay(read_yaml(path), given or {}))
