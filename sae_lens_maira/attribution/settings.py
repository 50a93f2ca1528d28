"""Settings of an attribution. Importing this is light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from sae_lens_maira.errors import AttributionError
from sae_lens_maira.settings import AtLeastOne, AtLeastZero, Settings, Share

SwapName: TypeAlias = Literal["different", "same", "blank", "counterfactual"]
MapName: TypeAlias = Literal[
    "gradient", "integrated_gradients", "relp", "occlusion", "pixel_gradients", "pixel_occlusion"
]


@dataclass(frozen=True)
class AttributionConfig(Settings):
    """What to attribute.

    Args:
        n_studies: use the source's first N studies.
        swaps: what sources are swapped for; the first kind fills the table of features.
        chosen_share: share of patients on which features are chosen for labels and the best map method is chosen; all
            figures are of the others.
        min_auroc: a feature carries a label if its area under the ROC curve is at least this, on the chosen share.
        n_controls: random directions that are measured beside the features.
        n_resamples: of the bootstrap over patients.
        features: features to map; null for the best one of each label that has boxes or can be seen.
        n_map_studies: studies per mapped feature, those in which it is strongest; 0 makes no maps.
        views: images to map.
        methods: how maps are made.
        boxes: a CSV or Parquet table of boxes (study_id, label, x_min, y_min, x_max, y_max, as fractions); null takes
            those of the studies' sentences.
        n_next_studies: studies in which the effects of features on the next token are measured; 0 for none.
        n_next_tokens: next tokens that are kept for each feature.
        seed: of donors, splits, controls and resamples.
    """

    ERROR = AttributionError

    n_studies: AtLeastOne = 100
    swaps: tuple[SwapName, ...] = ("different",)
    chosen_share: Share = 0.5
    min_auroc: Share = 0.95
    n_controls: AtLeastZero = 100
    n_resamples: AtLeastOne = 1000
    features: tuple[int, ...] | None = None
    n_map_studies: AtLeastZero = 8
    views: tuple[Literal["frontal", "lateral", "prior_frontal"], ...] = ("frontal", "lateral", "prior_frontal")
    methods: tuple[MapName, ...] = (
        "gradient",
        "integrated_gradients",
        "relp",
        "occlusion",
        "pixel_gradients",
        "pixel_occlusion",
    )
    boxes: str | None = None
    n_next_studies: AtLeastZero = 20
    n_next_tokens: AtLeastOne = 8
    seed: AtLeastZero = 0

    def check(self) -> None:
        if not self.swaps or len(set(self.swaps)) < len(self.swaps):
            raise AttributionError("swaps needs at least one kind of swap, and each kind once.")
        if self.n_map_studies and not self.methods:
            raise AttributionError("methods is empty; name one, or make no maps with n_map_studies: 0.")
        if not 0 < self.chosen_share < 1:
            raise AttributionError(f"chosen_share is {self.chosen_share}; it must lie between 0 and 1.")
