"""Which features get sae-dashboard's page: parses the setting ``pages``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sae_lens_maira.errors import DashboardError


@dataclass(frozen=True)
class AllFeatures:
    """Every feature."""


@dataclass(frozen=True)
class StrongestFeatures:
    """The ``n`` features that fire most strongly."""

    n: int


@dataclass(frozen=True)
class ListedFeatures:
    """These features."""

    features: tuple[int, ...]


PageChoice = AllFeatures | StrongestFeatures | ListedFeatures


def parse_page_choice(text: str) -> PageChoice:
    """Parse ``all``, ``none``, an integer N for the N strongest features, or a list such as ``3,17,256``.

    Raises:
        DashboardError: it is none of these.
    """
    if text == "all":
        return AllFeatures()
    if text == "none":
        return ListedFeatures(())
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    is_list = "," in text
    if not numbers or (not is_list and numbers[0] < 0):
        raise DashboardError(f"pages is '{text}'; give a number, all, none, or features such as 3,17,256.")
    return ListedFeatures(tuple(numbers)) if is_list else StrongestFeatures(numbers[0])


def chosen_features(choice: PageChoice, n_features: int, strongest: Sequence[int]) -> list[int]:
    """The features of a choice.

    Args:
        choice: the parsed setting.
        n_features: the SAE's number of features.
        strongest: features, strongest first; empty if all are dead.

    Raises:
        DashboardError: the choice lists a feature that does not exist.
    """
    if isinstance(choice, AllFeatures):
        return list(range(n_features)) if strongest else []
    if isinstance(choice, StrongestFeatures):
        return list(strongest[: choice.n])
    outside = [feature for feature in choice.features if not 0 <= feature < n_features]
    if outside:
        raise DashboardError(f"There is no feature {outside[0]}; the SAE has {n_features}.")
    return list(choice.features)
