"""Settings of the benchmark, as in ``configs/dictionaries_phantom.yaml``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sae_lens_maira.data.source import PhantomConfig
from sae_lens_maira.data.study import TokenKind
from sae_lens_maira.errors import ConfigError
from sae_lens_maira.setting_values import check_names
from sae_lens_maira.settings import AtLeastOne, AtLeastZero, Settings
from sae_lens_maira.training.config import ActivationsConfig, TrainConfig


@dataclass(frozen=True)
class DictionariesConfig(Settings):
    """What is compared, and on how much.

    Args:
        training: a training of several SAEs on the phantom; each entry of ``saes`` is one dictionary. Studies that it
            holds out are those that every score is measured on.
        seeds: each seed trains every dictionary once; three or more.
        n_choosing: studies at the source's start, on which latents and thresholds are chosen and probes are trained.
        pairs_per_concept: counterfactual pairs to choose latents on, and as many others to score them on.
        render_seed: determines the patients of the pairs.
        n_exchanged: latents per concept that are exchanged between two renders.
        concept_tokens: kinds of tokens whose strongest activation is a study's value of a latent.
    """

    training: TrainConfig
    seeds: tuple[AtLeastZero, ...] = (0, 1, 2)
    n_choosing: AtLeastOne = 1000
    pairs_per_concept: AtLeastOne = 4
    render_seed: AtLeastZero = 100
    n_exchanged: AtLeastOne = 4
    concept_tokens: tuple[str, ...] = ("frontal_image", "lateral_image")

    def check(self) -> None:
        training = self.training
        if len(training.saes) < 2:
            raise ConfigError("training.saes names the dictionaries to compare; give two or more.")
        if len(set(self.seeds)) < 3 or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError("seeds: give three different ones or more; with fewer, nothing can be told from noise.")
        if not isinstance(training.source, PhantomConfig):
            raise ConfigError("training.source must be the phantom: only it has exact truth and counterfactuals.")
        if training.source.n_held_out < 50:
            raise ConfigError("training.source.n_held_out must be at least 50: scores are measured on these studies.")
        if self.n_choosing > self.n_training:
            raise ConfigError(f"n_choosing is {self.n_choosing}, but only {self.n_training} studies are not held out.")
        check_names(self.concept_tokens, [kind.name.lower() for kind in TokenKind], "concept_tokens ")

    @property
    def n_training(self) -> int:
        """Studies that dictionaries are trained on."""
        source = self.training.source
        return (source.n_studies or 0) - source.n_held_out

    @property
    def kinds(self) -> tuple[int, ...]:
        """``concept_tokens`` as values of :class:`~sae_lens_maira.data.study.TokenKind`."""
        return tuple(int(TokenKind[name.upper()]) for name in self.concept_tokens)

    def training_with(self, seed: int, cache: str) -> TrainConfig:
        """The training of one seed: its number determines the initialization and the order of the tokens."""
        runner: dict[str, Any] = {**self.training.runner, "seed": seed}
        activations = ActivationsConfig(cache, self.training.activations.kinds, self.training.activations.run_length)
        return replace(self.training, runner=runner, activations=activations, shuffle_seed=seed)
