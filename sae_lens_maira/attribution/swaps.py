"""What takes the place of a study's sources when they are swapped.

A study's prompt has up to five sources. Teacher forcing makes the report's own earlier words one of them: after
"pacemaker" has been written, a feature of pacemakers need not look at the image any more.

Kinds of swaps:

- ``different``: another patient's, with as few labels in common as possible. The prompt stays one that the model knows.
- ``same``: another patient's, with labels as similar as possible. A feature that needs *this* image, rather than any
  image with the same findings, changes.
- ``blank``: images at the mean gray after normalization, and sections that say that there is nothing. The simplest
  swap, but such prompts are unlike all that the model was trained on.
- ``counterfactual``: on the phantom, the same body with other findings, and the request and the reports that go with
  these.

Every swap keeps which images a study has, so the positions of the images stay the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float

from sae_lens_maira.data.study import SectionName, Study, View
from sae_lens_maira.phantom.generate import PhantomStudy, build
from sae_lens_maira.phantom.words.requests import INDICATIONS
from sae_lens_maira.phantom.world.concepts import State, as_state

Source = Literal["current_images", "prior_image", "prior_report", "prompt", "report"]
SOURCES: tuple[Source, ...] = get_args(Source)
"""Sources of a prompt: the current frontal and lateral image, the prior image, the prior report, the request
(indication, technique, comparison), and the report's own words so far."""
SwapKind = Literal["different", "same", "blank", "counterfactual"]
SWAP_KINDS: tuple[SwapKind, ...] = get_args(SwapKind)

_VIEWS: dict[Source, tuple[View, ...]] = {
    "current_images": ("frontal", "lateral"),
    "prior_image": ("prior_frontal",),
}
_SECTIONS: dict[Source, tuple[SectionName, ...]] = {
    "prior_report": ("prior_report",),
    "prompt": ("indication", "technique", "comparison"),
    "report": ("findings",),
}


@dataclass(frozen=True)
class Replacement:
    """What a study's sources are swapped for.

    Args:
        images: for each of the study's images, the study that gives its own image of that view; None for a blank one.
        texts: for each of the study's sections, the text; None for an empty section.
    """

    images: Mapping[View, Study | None] = field(default_factory=dict)
    texts: Mapping[SectionName, str | None] = field(default_factory=dict)


def sources_of(study: Study) -> tuple[Source, ...]:
    """The sources that a study has, in the order of :data:`SOURCES`; the others cannot have an effect."""
    has: dict[Source, bool] = {
        "current_images": True,
        "prior_image": study.prior_frontal is not None,
        "prior_report": bool(study.prior_report) and study.prior_frontal is not None,
        "prompt": True,
        "report": bool(study.findings),
    }
    return tuple(source for source in SOURCES if has[source])


def views_of(source: Source, study: Study) -> tuple[View, ...]:
    """The study's images that belong to a source."""
    return tuple(view for view in _VIEWS.get(source, ()) if view in study.images)


def with_texts(study: Study, replacement: Replacement, swapped: Sequence[Source]) -> Study:
    """The study with the texts of some sources swapped; its images are those it has."""
    names: list[SectionName] = [name for source in swapped for name in _SECTIONS.get(source, ())]
    texts: dict[str, Any] = {name: replacement.texts.get(name) for name in names}
    return replace(study, sentences=(), **texts)


class Donors:
    """Finds what to swap a study's sources for.

    Args:
        studies: to choose from.
        seed: of the choice among equally good ones.
    """

    def __init__(self, studies: Sequence[Study], seed: int) -> None:
        self._studies = list(studies)
        self._seed = seed
        names = sorted({name for study in self._studies for name in study.labels})
        self._positive = np.zeros((len(self._studies), len(names)), dtype=np.float32)
        for row, study in zip(self._positive, self._studies, strict=True):
            row[:] = [name in study.labels and study.labels[name].positive for name in names]

    def replacement(self, index: int, kind: SwapKind) -> Replacement:
        """What the sources of the study at an index are swapped for.

        A source for which no other study has anything to give is blank.
        """
        study = self._studies[index]
        if kind == "blank":
            return Replacement(dict.fromkeys(study.images), {})
        if kind == "counterfactual":
            return self._counterfactual(index)
        images: dict[View, Study | None] = {}
        texts: dict[SectionName, str | None] = {}
        for source in sources_of(study):
            donor = self._donor(index, source, kind)
            images |= dict.fromkeys(views_of(source, study), donor)
            texts |= {name: donor and getattr(donor, name) for name in _SECTIONS.get(source, ())}
        return Replacement(images, texts)

    def _donor(self, index: int, source: Source, kind: SwapKind) -> Study | None:
        """The best study of another patient that has the source."""
        study = self._studies[index]
        order = np.lexsort((self._chance(index), -self._fitness(index, source, kind)))
        for candidate in (self._studies[number] for number in order):
            if candidate.patient_id != study.patient_id and (
                set(views_of(source, study)) <= set(candidate.images) and source in sources_of(candidate)
            ):
                return candidate
        return None

    def _fitness(self, index: int, source: Source, kind: SwapKind) -> Float[np.ndarray, " n_studies"]:
        """How well each study fits: by the positive labels in common, and for a request also by equal sections."""
        own = self._positive[index]
        common = self._positive @ own
        if kind == "same":
            united = np.maximum(self._positive.sum(axis=1) + own.sum() - common, 1)
            return (common + (self._positive == own).all(axis=1)) / united
        if source == "prompt":
            study = self._studies[index]
            common += np.array(
                [
                    sum(getattr(other, name) == getattr(study, name) for name in _SECTIONS["prompt"])
                    for other in self._studies
                ],
                dtype=np.float32,
            )
        return -common

    def _counterfactual(self, index: int) -> Replacement:
        study = self._studies[index]
        if not isinstance(study, PhantomStudy):
            raise ValueError(f"study {study.study_id} is not the phantom's, so it cannot be drawn again")
        recipe = study.recipe
        shown = self._some_state(index)
        changed = build(
            replace(
                recipe,
                state={} if recipe.state else shown,
                prior=None if recipe.prior is None else {} if recipe.prior else shown,
            )
        )
        indications = [name for name in INDICATIONS if name != recipe.indication]
        said = indications[int(self._chance(index)[0] * len(indications))]
        request = build(
            replace(
                recipe,
                state={},
                indication=said,
                portable=not recipe.portable,
                lateral=recipe.portable,
                prior={} if recipe.prior is None else None,
            )
        )
        texts: dict[SectionName, str | None] = {
            **{name: getattr(request, name) for name in _SECTIONS["prompt"]},
            "prior_report": changed.prior_report,
            "findings": changed.findings,
        }
        return Replacement(dict.fromkeys(study.images, changed), texts)

    def _some_state(self, index: int) -> State:
        """The findings of another study that has some."""
        for number in np.argsort(self._chance(index)):
            other = self._studies[number]
            if isinstance(other, PhantomStudy) and other.recipe.state:
                return other.recipe.state
        return as_state(["cardiomegaly"])

    def _chance(self, index: int) -> Float[np.ndarray, " n_studies"]:
        """Random numbers that depend only on the seed and the study's name."""
        digest = hashlib.sha256(f"{self._seed}\n{self._studies[index].study_id}".encode("utf-8", "surrogatepass"))
        return np.random.default_rng(int.from_bytes(digest.digest()[:8], "big")).random(len(self._studies))
