"""What to make: the settings of `sae-lens-maira dashboard`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sae_lens_maira.activations.live import MAX_BATCH_TOKENS
from sae_lens_maira.dashboard.page_choice import chosen_features, parse_page_choice
from sae_lens_maira.data.study import Study
from sae_lens_maira.errors import DashboardError


@dataclass(frozen=True)
class DashboardSettings:
    """What to make.

    Args:
        title: the gallery's heading.
        pages: features that get sae-dashboard's page: an integer N for the N strongest features, ``all``, ``none``, or
            a list of features such as ``3,17,256``.
        neuronpedia: also write Neuronpedia's files for the same features, from shareable studies.
        sae_set: Neuronpedia's name of the set that the SAE belongs to.
        include_private: show studies that may not leave this machine, with a banner.
        n_studies: studies from the start of the source; None for all.
        n_examples: studies per feature.
        image_size: longer side of an image, in pixels, at most.
        max_batch_tokens: padded tokens per forward pass; a study longer than this runs alone.
    """

    title: str = "SAE features of MAIRA-2"
    pages: str = "100"
    neuronpedia: bool = False
    sae_set: str = "maira-2-sae"
    include_private: bool = False
    n_studies: int | None = None
    n_examples: int = 8
    image_size: int = 256
    max_batch_tokens: int = MAX_BATCH_TOKENS

    def __post_init__(self) -> None:
        parse_page_choice(self.pages)
        for name in ("n_studies", "n_examples", "image_size", "max_batch_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DashboardError(f"{name} is {value}; it must be at least 1.")

    def shows(self, study: Study) -> bool:
        """Whether a study's text and images are shown."""
        return study.shareable or self.include_private

    def page_list(self, n_features: int, strongest: Sequence[int]) -> list[int]:
        """The features that ``pages`` names; see :func:`~sae_lens_maira.dashboard.page_choice.chosen_features`."""
        return chosen_features(parse_page_choice(self.pages), n_features, strongest)
