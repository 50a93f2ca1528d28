"""What a dashboard shows. Importing this is light."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from sae_lens_maira.data.study import Study
from sae_lens_maira.errors import DashboardError, PackageMissing
from sae_lens_maira.settings import AtLeastOne, Settings


@dataclass(frozen=True)
class DashboardSettings(Settings):
    """What to make.

    Args:
        title: the gallery's heading.
        pages: features that get sae-dashboard's page: an integer N for the N strongest features, ``all``, ``none``, or
            a list of features such as ``3,17,256`` (of a single one: ``3,``).
        neuronpedia: also write Neuronpedia's files for the same features, from shareable studies.
        sae_set: Neuronpedia's name of the set that the SAE belongs to.
        include_private: show studies that may not leave this machine, with a banner.
        n_studies: use the first of the source's studies only; null for all.
        n_examples: studies per feature.
        image_size: longer side of an image, in pixels, at most.
        batch_size: studies per forward pass.
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
    batch_size: AtLeastOne = 16

    def check(self) -> None:
        self.wanted_pages()

    def check_packages(self) -> None:
        """Refuse pages that need sae-dashboard where it is not installed.

        Raises:
            PackageMissing: saying how to install it.
        """
        if self.pages != "none" and find_spec("sae_dashboard") is None:
            raise PackageMissing(
                "sae-dashboard's pages need a package that is not installed: pip install 'sae-lens-maira[dashboard]', "
                "or leave them out with --pages none."
            )

    def shows(self, study: Study) -> bool:
        """Whether a study's text and images are shown."""
        return study.shareable or self.include_private

    def wanted_pages(self) -> Literal["all", "none"] | int | list[int]:
        """What ``pages`` says: a number of the strongest features, or a list of features.

        Raises:
            DashboardError: ``pages`` cannot be understood.
        """
        if self.pages == "all" or self.pages == "none":
            return self.pages
        try:
            numbers = [int(part) for part in self.pages.split(",") if part.strip()]
        except ValueError:
            numbers = []
        if not numbers or ("," not in self.pages and numbers[0] < 0):
            raise DashboardError(f"pages is '{self.pages}'; give a number, all, none, or features such as 3,17,256.")
        return numbers if "," in self.pages else numbers[0]

    def page_list(self, n_features: int, strongest: Sequence[int]) -> list[int]:
        """The features that ``pages`` names.

        Args:
            n_features: the SAE's.
            strongest: features, strongest first.

        Raises:
            DashboardError: ``pages`` names a feature that does not exist.
        """
        wanted = self.wanted_pages()
        if wanted == "all":
            return list(range(n_features)) if strongest else []
        if wanted == "none":
            return []
        if isinstance(wanted, int):
            return list(strongest[:wanted])
        outside = [feature for feature in wanted if not 0 <= feature < n_features]
        if outside:
            raise DashboardError(f"There is no feature {outside[0]}; the SAE has {n_features}.")
        return wanted
