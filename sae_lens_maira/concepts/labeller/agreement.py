"""Two sources of labels compared: how often they agree on each concept, and examples of each kind of disagreement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from sae_lens_maira.measures.intervals import Interval, wilson


class Agreement(NamedTuple):
    """How two sources agree on one concept.

    Args:
        concept: its name.
        n_both: studies that both call positive.
        n_only_first, n_only_second: studies that only one of them calls positive.
        n_neither: studies that neither calls positive.
        only_first, only_second: ids of the first of those studies, in order.
    """

    concept: str
    n_both: int
    n_only_first: int
    n_only_second: int
    n_neither: int
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, which does not depend on which source is called the truth."""
        total = 2 * self.n_both + self.n_only_first + self.n_only_second
        return 2 * self.n_both / total if total else float("nan")

    @property
    def precision(self) -> Interval:
        """Share of the first source's positive studies that the second calls positive, with Wilson's interval."""
        return wilson(self.n_both, self.n_both + self.n_only_first)

    @property
    def recall(self) -> Interval:
        """Share of the second source's positive studies that the first calls positive, with Wilson's interval."""
        return wilson(self.n_both, self.n_both + self.n_only_second)

    @property
    def kappa(self) -> float:
        """Cohen's kappa: agreement above what the two rates of positive studies give by chance (Cohen 1960)."""
        n = self.n_both + self.n_only_first + self.n_only_second + self.n_neither
        if not n:
            return float("nan")
        first, second = (self.n_both + self.n_only_first) / n, (self.n_both + self.n_only_second) / n
        expected = first * second + (1 - first) * (1 - second)
        observed = (self.n_both + self.n_neither) / n
        return (observed - expected) / (1 - expected) if expected < 1 else float("nan")


def compare_labels(
    study_ids: Sequence[str],
    first: Sequence[Mapping[str, bool]],
    second: Sequence[Mapping[str, bool]],
    *,
    n_examples: int = 5,
) -> list[Agreement]:
    """Compare two sources on every concept that both know; a study that one of them does not label is left out.

    Args:
        study_ids: of the studies.
        first: whether each concept is positive in each study.
        second: the same of the other source.
        n_examples: largest number of examples of each kind.
    """
    concepts = [name for name in dict.fromkeys(_names(first)) if name in set(_names(second))]
    found = []
    for concept in concepts:
        answers = [
            (study, one[concept], other[concept])
            for study, one, other in zip(study_ids, first, second, strict=True)
            if concept in one and concept in other
        ]
        only_first = [study for study, one, other in answers if one and not other]
        only_second = [study for study, one, other in answers if other and not one]
        n_both = sum(one and other for _, one, other in answers)
        n_neither = len(answers) - n_both - len(only_first) - len(only_second)
        examples = tuple(only_first[:n_examples]), tuple(only_second[:n_examples])
        found.append(Agreement(concept, n_both, len(only_first), len(only_second), n_neither, *examples))
    return found


def _names(labels: Iterable[Mapping[str, bool]]) -> Iterable[str]:
    return (name for known in labels for name in known)
