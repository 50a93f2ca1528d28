"""What an experiment has to know of its studies: what they show, how to draw a concept in, and what reports say.

The phantom knows all of it exactly: concepts are drawn, and reports are read by the inverse of its grammar.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

from sae_lens_maira.data.study import Study
from sae_lens_maira.errors import SteeringError
from sae_lens_maira.phantom.generate import PhantomStudy, counterfactual
from sae_lens_maira.phantom.words.grammar import Claim, sentences, stem
from sae_lens_maira.phantom.words.scoring import parse_report, positives
from sae_lens_maira.phantom.world.concepts import CONCEPTS, VISIBLE, Appearance

Relation = Literal["family", "side", "other"]
"""A state of the same thing, the same on the other side, or anything else."""


@dataclass(frozen=True)
class Said:
    """What a report says.

    Args:
        mentions: concepts that it calls present or uncertain.
        n_sentences: number of its sentences.
        n_unread: sentences that could not be read.
    """

    mentions: frozenset[str]
    n_sentences: int
    n_unread: int


@runtime_checkable
class World(Protocol):
    """Studies whose concepts are known, and a reader of reports."""

    @property
    def concepts(self) -> tuple[str, ...]: ...
    def shown(self, study: Study) -> frozenset[str]:
        """Concepts that a study shows."""
        ...

    def pair(self, study: Study, concept: str) -> tuple[Study, Study]:
        """A study with nothing but a concept, and the same study with nothing."""
        ...

    def with_concept(self, study: Study, concept: str) -> Study:
        """A study with a concept added; other states of its family are taken away."""
        ...

    def asking_for(self, study: Study, concept: str) -> Study:
        """A study whose request says that the concept is there, as someone would write who wants to read of it."""
        ...

    def wordings(self, concept: str) -> tuple[str, ...]:
        """Sentences that say that the concept is present."""
        ...

    def relation(self, concept: str, other: str) -> Relation:
        """How two concepts are related."""
        ...

    def read(self, report: str) -> Said:
        """What a report says."""
        ...


class PhantomWorld:
    """The phantom's concepts, pictures and grammar."""

    concepts = VISIBLE

    def shown(self, study: Study) -> frozenset[str]:
        """Concepts that a study's labels call present or uncertain."""
        return positives(study.labels)

    def pair(self, study: Study, concept: str) -> tuple[Study, Study]:
        """The patient with nothing but the concept, and with nothing."""
        own = self._drawn(study)
        return counterfactual(own, concepts=[concept]), counterfactual(own, concepts=[])

    def with_concept(self, study: Study, concept: str) -> Study:
        """The study with the concept drawn in at its largest extent."""
        own, family = self._drawn(study), CONCEPTS[concept].family
        state = {name: look for name, look in own.recipe.state.items() if CONCEPTS[name].family != family}
        return counterfactual(own, concepts={**state, concept: Appearance(CONCEPTS[concept].extents[-1])})

    def asking_for(self, study: Study, concept: str) -> Study:
        """The study with a wording of the concept at the end of its indication."""
        return replace(study, indication=f"{study.indication} {self.wordings(concept)[0]}")

    def wordings(self, concept: str) -> tuple[str, ...]:
        """All sentences of the grammar that call the concept present, without a change."""
        return sentences(Claim(concept, "present", None))

    def relation(self, concept: str, other: str) -> Relation:
        """The two sizes of an effusion are one family; left and right are two sides of one thing."""
        own, theirs = CONCEPTS[concept], CONCEPTS[other]
        if own.family == theirs.family:
            return "family"
        if own.side and theirs.side and stem(own.family, own.side) == stem(theirs.family, theirs.side):
            return "side"
        return "other"

    def read(self, report: str) -> Said:
        """The report as the grammar reads it."""
        parsed = parse_report(report)
        n_unread = len(parsed.unparsed)
        return Said(parsed.positives, len(parsed.sentences) + n_unread, n_unread)

    @staticmethod
    def _drawn(study: Study) -> PhantomStudy:
        if not isinstance(study, PhantomStudy):
            raise SteeringError(f"Study '{study.study_id}' is no phantom study, so nothing can be drawn into it.")
        return study


def check_concepts(world: World, wanted: Sequence[str]) -> tuple[str, ...]:
    """The concepts to steer, all if none is named.

    Raises:
        SteeringError: one is unknown.
    """
    for name in wanted:
        if name not in world.concepts:
            raise SteeringError(f"concepts has '{name}', which is unknown; choose from {', '.join(world.concepts)}.")
    return tuple(wanted) or world.concepts
