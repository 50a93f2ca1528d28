"""The phantom's strongest negatives: the same body, exposure and wording, without one concept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sae_lens_maira.data.study import Study
from sae_lens_maira.interpret.corpus import Corpus
from sae_lens_maira.interpret.facts import Fact, parts_of
from sae_lens_maira.phantom.generate import PhantomStudy, counterfactual


@dataclass(frozen=True)
class Counterfactual:
    """A study that was rendered again.

    Args:
        study: number of the new study among the recorded ones.
        origin: number of the study that it comes from.
        concept: what is missing in the new one.
    """

    study: int
    origin: int
    concept: str


def without_concepts(studies: Sequence[Study], most: int) -> list[tuple[PhantomStudy, int, str]]:
    """Phantom studies without one of their concepts: the new study, the number of the old one, and the concept.

    Args:
        studies: any studies; those that are not the phantom's give none.
        most: new studies, at most; every study gives its first concept before any gives its second.
    """
    found: list[tuple[int, int, str]] = []
    for number, study in enumerate(studies):
        if isinstance(study, PhantomStudy):
            found += [(place, number, concept) for place, concept in enumerate(study.recipe.state)]
    made: list[tuple[PhantomStudy, int, str]] = []
    for _, number, concept in sorted(found)[:most]:
        study = studies[number]
        assert isinstance(study, PhantomStudy)
        rest = {name: appearance for name, appearance in study.recipe.state.items() if name != concept}
        without = counterfactual(study, concepts=rest)
        made.append((replace(without, study_id=f"{study.study_id}-without-{concept}"), number, concept))
    return made


def counterfactual_units(corpus: Corpus, number: int, known: Sequence[Counterfactual]) -> list[int]:
    """The units of new studies that take the place of a unit, if the unit is about the concept that they lack.

    Of the frontal image it is the new frontal image; of a sentence of the findings, the sentence that says that the
    finding is absent, where there is one.
    """
    unit = corpus.units[number]
    found: list[int] = []
    for new in known:
        if new.origin != unit.study or Fact("concept", new.concept) not in unit.facts:
            continue
        absent = Fact("absent", parts_of(new.concept).finding)
        for place in corpus.units_of_study(new.study):
            other = corpus.units[place]
            is_counterpart = other.place == unit.place and (unit.place == "frontal" or absent in other.facts)
            if is_counterpart and unit.place in ("frontal", "findings"):
                found.append(place)
    return found
