"""What a source holds: counts, shares and lengths, in one pass over its texts. No image is opened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean

from sae_lens_maira.data.source import StudySource
from sae_lens_maira.data.study import SECTIONS, SectionName, Study

_N_LABELS_SHOWN = 12


@dataclass(frozen=True)
class Lengths:
    """How long the texts of one section are, over the studies that have it."""

    n: int
    mean: float
    median: int
    p95: int
    """The 95th percentile: 95 of 100 texts are as long or shorter."""
    longest: int

    @classmethod
    def of(cls, values: Iterable[int]) -> Lengths:
        """From single lengths."""
        ordered = sorted(values)
        if not ordered:
            return cls(0, 0.0, 0, 0, 0)

        def at(share: float) -> int:
            return ordered[min(int(share * len(ordered)), len(ordered) - 1)]

        return cls(len(ordered), fmean(ordered), at(0.5), at(0.95), ordered[-1])


@dataclass(frozen=True)
class SourceSummary:
    """Counts over a source's studies.

    Args:
        n_studies: usable studies.
        n_patients: patients with a usable study.
        unusable: number of studies that were left out, by reason.
        n_with: number of studies with a ``lateral``, a ``prior_frontal``, a time (``acquired_at``), ``labels``, and of
            those that are ``shareable``.
        views: number of studies by the view of the frontal image.
        lengths: of each section, in ``unit``.
        labels: number of studies in which each concept is present.
        unit: of ``lengths``.
    """

    n_studies: int
    n_patients: int
    unusable: dict[str, int]
    n_with: dict[str, int]
    views: dict[str, int]
    lengths: dict[SectionName, Lengths]
    labels: dict[str, int]
    unit: str

    def describe(self) -> str:
        """The summary as text, one line per count."""
        lines = [f"{self.n_studies} studies of {self.n_patients} patients"]
        lines += [f"  {count} left out: {reason}" for reason, count in self.unusable.items()]
        for name, label in {
            "lateral": "with a lateral image",
            "prior_frontal": "with a prior image",
            "acquired_at": "with a time",
            "labels": "with labels",
            "shareable": "may be shared",
        }.items():
            lines.append(f"  {self.n_with[name] / max(self.n_studies, 1):6.1%} {label}")
        lines.append("  frontal views: " + ", ".join(f"{view} {count}" for view, count in self.views.items()))
        lines.append(f"{'section, ' + self.unit:22}{'studies':>9}{'mean':>8}{'median':>8}{'95%':>6}{'longest':>9}")
        for name, found in self.lengths.items():
            lines.append(f"{name:22}{found.n:9}{found.mean:8.1f}{found.median:8}{found.p95:6}{found.longest:9}")
        if self.labels:
            shown = list(self.labels.items())[:_N_LABELS_SHOWN]
            more = f", ... ({len(self.labels)} in all)" if len(self.labels) > len(shown) else ""
            lines.append("present: " + ", ".join(f"{name} {count}" for name, count in shown) + more)
        return "\n".join(lines)


def summarize(
    source: StudySource,
    studies: Iterable[Study],
    measure: Callable[[str], int] = lambda text: len(text.split()),
    unit: str = "words",
) -> SourceSummary:
    """Count a source's studies.

    Args:
        source: the source; its unusable studies are reported.
        studies: its studies, each read once; give the source itself, or a progress bar around it.
        measure: gives the length of a text.
        unit: the unit of ``measure``.
    """
    patients: set[str] = set()
    n_with: dict[str, int] = dict.fromkeys(("lateral", "prior_frontal", "acquired_at", "labels", "shareable"), 0)
    views: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    lengths: dict[SectionName, list[int]] = {name: [] for name in SECTIONS}
    n_studies = 0
    for study in studies:
        n_studies += 1
        patients.add(study.patient_id)
        views[study.view or "unknown"] += 1
        for name in n_with:
            n_with[name] += bool(getattr(study, name))
        labels.update(name for name, label in study.labels.items() if label.presence == "present")
        for name, text in study.texts.items():
            lengths[name].append(measure(text))
    return SourceSummary(
        n_studies=n_studies,
        n_patients=len(patients),
        unusable=dict(source.unusable.most_common()),
        n_with=n_with,
        views=dict(views.most_common()),
        lengths={name: Lengths.of(found) for name, found in lengths.items()},
        labels=dict(labels.most_common()),
        unit=unit,
    )
