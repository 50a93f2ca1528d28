"""Settings of concept scores."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from sae_lens_maira.errors import ConfigError
from sae_lens_maira.settings import AtLeastOne, AtLeastZero, Settings, Share

RegionName = Literal[
    "images",
    "image_ends",
    "indication",
    "technique",
    "comparison",
    "prior_report",
    "prompt",
    "findings",
    "findings_elsewhere",
]
Uncertain: TypeAlias = Literal["positive", "negative", "leave_out"]
Control: TypeAlias = Literal[
    "random_top_k",
    "random_projections",
    "coordinates",
    "principal_components",
    "frozen_decoder",
    "random_model",
    "words",
    "length",
    "bag_of_words",
    "dense_probe",
]
CONTROLS: tuple[Control, ...] = get_args(Control)
SUPERVISED: tuple[Control, ...] = ("bag_of_words", "dense_probe")
"""References that use all inputs at once; the others choose one feature, as for latents."""


@dataclass(frozen=True)
class ConceptSettings(Settings):
    """How features are compared with labels.

    Args:
        regions: where features are read.
        controls: what the latents are compared with; ``random_model`` runs a copy of the model with random weights.
        uncertain: how an uncertain finding counts: ``positive``, ``negative``, or ``leave_out``.
        groups: further nodes of the tree of concepts: a name, and the labels below it; the phantom's tree is known.
        families: labels that are states of one finding, on which changes are measured; each label by itself if empty.
        choice_share: share of the patients on whom features and thresholds are chosen; the others score them.
        min_studies: positive and negative studies that a question needs in each of the two parts.
        n_resamples: bootstrap resamples of the patients that score.
        frozen_decoder_steps: training steps of the SAE with a frozen random decoder.
        every_score: also write ``scores.parquet``, the scores of every latent for every question and region.
        seed: of the division of patients, the resamples and the random controls.
    """

    GROUP = "concepts."

    regions: tuple[RegionName, ...] = get_args(RegionName)
    controls: tuple[Control, ...] = tuple(name for name in CONTROLS if name != "random_model")
    uncertain: Uncertain = "positive"
    groups: dict[str, list[str]] = field(default_factory=dict)
    families: dict[str, list[str]] = field(default_factory=dict)
    choice_share: Share = 0.5
    min_studies: AtLeastOne = 8
    n_resamples: AtLeastOne = 1000
    frozen_decoder_steps: AtLeastZero = 300
    every_score: bool = True
    seed: AtLeastZero = 0

    def check(self) -> None:
        if not 0 < self.choice_share < 1:
            raise ConfigError(f"concepts.choice_share {self.choice_share} leaves one part without patients.")
        if not self.regions:
            raise ConfigError("concepts.regions is empty, so there is nothing to read.")
