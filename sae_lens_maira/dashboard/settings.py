"""What a dashboard shows. Importing this is light."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from sae_lens_maira.dashboard.page_choice import chosen_features, parse_page_choice
from sae_lens_maira.data.study import Study
from sae_lens_maira.errors import DashboardError, MissingPackageError
from sae_lens_maira.settings import AtLeastOne, Settings


@dataclass(frozen=True)
class DashboardSettings(Settings):
    """What to make.

    Args:
        title: the gallery's heading.
        pages: features that get sae-dashboard's page: an integer N for the N strongest features, ``all``, ``none``, or
            a list of features such as ``3,17,256`` (``3,`` for a single one).
        neuronpedia: also write Neuronpedia's files for the same features, from shareable studies.
        sae_set: Neuronpedia's name for the set that the SAE belongs to.
        include_private: show studies that may not leave this machine, with a banner.
        n_studies: use only the first N studies of the source; null for all.
        n_examples: example studies per feature.
        image_size: largest width or height of an image, in pixels.
        max_batch_tokens: padded tokens per forward pass; a study longer than this runs alone.
    """

    ERROR = DashboardError

    title: str = "SAE features of MAIRA-2"
    pages: str = "100"
    neuronpedia: bool = False
    sae_set: str = "maira-2-sae"
    include_private: bool = False
    n_studies: AtLeastOne | None = 2000
    n_examples: AtLeastOne = 8
    image_size: AtLeastOne = 256
    max_batch_tokens: AtLeastOne = 8192

    def check(self) -> None:
        parse_page_choice(self.pages)
        if self.neuronpedia and self.pages == "none":
            raise DashboardError("neuronpedia writes the features that pages names, and pages is none; name some.")

    def check_packages(self) -> None:
        """Refuse pages that need sae-dashboard if it is not installed.

        Raises:
            MissingPackageError: sae-dashboard is not installed; the message says how to install it.
        """
        if self.pages != "none" and find_spec("sae_dashboard") is None:
            raise MissingPackageError(
                "sae-dashboard's pages need a package that is not installed: pip install 'sae-lens-maira[dashboard]', "
                "or leave them out with --pages none."
            )

    def shows(self, study: Study) -> bool:
        """Whether a study's text and images are shown."""
        return study.shareable or self.include_private

    def page_list(self, n_features: int, strongest: Sequence[int]) -> list[int]:
        """The features that ``pages`` names; see :func:`~sae_lens_maira.dashboard.page_choice.chosen_features`."""
        return chosen_features(parse_page_choice(self.pages), n_features, strongest)
