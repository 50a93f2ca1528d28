"""The settings of a steering experiment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sae_lens_maira.data.source import PhantomConfig, SourceConfig
from sae_lens_maira.errors import SteeringError
from sae_lens_maira.hooked.where import Where
from sae_lens_maira.settings import AtLeastOne, AtLeastZero, Settings, Share

Control = Literal[
    "wrong_sign",
    "random_direction",
    "random_latent",
    "permuted_decoder",
    "random_dictionary",
    "wrong_layer",
    "difference_of_means",
    "prompt",
]


@dataclass(frozen=True)
class SteerConfig(Settings):
    """Which concepts are steered, on which studies, and how latents and doses are chosen.

    Args:
        concepts: names of the concepts; all visible ones if empty.
        where: the positions of the edits.
        studies: where studies come from; they are divided by patients into those on which latents are chosen, those on
            which doses are chosen, and those that are reported.
        n_choice: studies on which latents are chosen, with the concept drawn in and without it.
        n_dose: studies on which the dose and the number of latents are chosen.
        n_test: studies of the final score.
        n_controls: of these, studies on which controls are measured.
        n_removal: of these, studies in which each concept is drawn in and its latents are ablated.
        n_prompt: of these, studies for the control that asks for the concept in the indication.
        n_tried: of the studies for the choice, those on which candidates write reports.
        doses: multiples of the size that each candidate shows in studies with the concept; every second one is tried
            when latents are chosen.
        n_candidates: single latents that are tried per concept; as many of random directions.
        max_latents: largest number of latents for one concept.
        max_off_target: a dose is chosen among those that change at most this share of the other concepts.
        controls: what is measured beside the latents, at the same norm and positions.
        strength_percentile: of a latent's positive activations: the unit of doses.
        n_strength: studies of the SAE's own training on which strengths are measured.
        max_new_tokens: largest number of tokens of a report.
        max_rows: rows of one batch.
        seed: of the splits and of the random controls.
        keep_texts: keep the reports of shareable studies in the result.
    """

    GROUP = ""
    ERROR = SteeringError

    concepts: tuple[str, ...] = ()
    where: Where = field(default_factory=Where)
    studies: SourceConfig = field(default_factory=lambda: PhantomConfig(n_studies=400, seed=101, n_held_out=0))
    n_choice: AtLeastOne = 12
    n_tried: AtLeastOne = 10
    n_dose: AtLeastOne = 16
    n_test: AtLeastOne = 100
    n_controls: AtLeastOne = 12
    n_removal: AtLeastZero = 8
    n_prompt: AtLeastZero = 4
    doses: tuple[float, ...] = (1.0, 1.25, 1.5, 2.0, 2.5)
    n_candidates: AtLeastOne = 3
    max_latents: AtLeastOne = 3
    max_off_target: Share = 0.04
    controls: tuple[Control, ...] = (
        "wrong_sign",
        "random_direction",
        "random_latent",
        "permuted_decoder",
        "random_dictionary",
        "wrong_layer",
        "difference_of_means",
        "prompt",
    )
    strength_percentile: float = 99.0
    n_strength: AtLeastOne = 64
    max_new_tokens: AtLeastOne = 160
    max_rows: AtLeastOne = 128
    seed: AtLeastZero = 0
    keep_texts: bool = False

    def check(self) -> None:
        if not self.doses or min(self.doses) <= 0:
            raise SteeringError(f"doses {list(self.doses)} must be positive numbers; such as [1, 1.5, 2, 3].")
        if self.n_tried > self.n_choice:
            raise SteeringError(f"n_tried {self.n_tried} is more than n_choice {self.n_choice}; try on fewer studies.")
        if max(self.n_controls, self.n_removal, self.n_prompt) > self.n_test:
            raise SteeringError(
                f"n_controls, n_removal and n_prompt are taken from the n_test = {self.n_test} studies; ask for less."
            )
