"""What is known to be true of a piece of a study: the vocabulary of rules, and of a judge that cannot err.

A *fact* is a kind and a value, such as ``finding: effusion`` or ``side: left``. Facts of a sentence come from the
labels of the source's sentences (the phantom's are exact), from its section and from its words; facts of an image come
from the labels of its study. A *rule* is a set of facts that hold together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple, TypeAlias

from sae_lens_maira.data.study import Label, SectionName, Study, View
from sae_lens_maira.phantom.generate import PhantomStudy
from sae_lens_maira.phantom.words.grammar import meanings, normalize
from sae_lens_maira.phantom.world.concepts import CONCEPTS, visible_labels

FactKind: TypeAlias = Literal[
    "concept", "finding", "side", "size", "change", "presence", "absent", "label", "section", "word"
]
Place: TypeAlias = SectionName | View
"""The section of a piece of text, or the view of an image."""


class Fact(NamedTuple):
    """One fact. ``absent`` names a finding that is said not to be there; ``label`` is a label of the whole study."""

    kind: FactKind
    value: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.value}"


Rule: TypeAlias = tuple[Fact, ...]
"""Facts that hold together, sorted."""

_WORD = re.compile(r"[a-z][a-z'-]+")
_SIDES = ("left", "right", "bilateral")
_SIZES = {"small": "small", "large": "large", "mild": "small", "moderate": "large", "severe": "large"}
_POSITIONS = ("well_placed", "too_low")


class ConceptParts(NamedTuple):
    """The parts of a label's name: what, on which side, how large."""

    finding: str
    side: str | None = None
    size: str | None = None


def parts_of(name: str) -> ConceptParts:
    """The parts of a label's name: the phantom's (``effusion_left_small``), or MeSH (``Opacity/lung/left/mild``)."""
    concept = CONCEPTS.get(name)
    if concept is not None:
        words = name.split("_")
        size = words[-1] if words[-1] in _SIZES else None
        kept = [word for word in words if word not in (concept.side, size)]
        finding = "_".join(kept)
        for position in _POSITIONS:
            finding = finding.removesuffix(f"_{position}")
        return ConceptParts(finding, concept.side, size)
    heading, *qualifiers = (part.strip().lower() for part in name.split("/"))
    side = next((word for word in qualifiers if word in _SIDES), None)
    size = next((_SIZES[word] for word in qualifiers if word in _SIZES), None)
    return ConceptParts(heading, side, size)


def words_of(text: str) -> list[str]:
    """The distinct words of a text, in lower case and in order."""
    return list(dict.fromkeys(_WORD.findall(text.lower())))


def facts_of_labels(labels: Mapping[str, Label]) -> set[Fact]:
    """What labels of one sentence, or of one image, say."""
    facts: set[Fact] = set()
    for name, label in labels.items():
        finding, side, size = parts_of(name)
        if label.positive:
            facts |= {Fact("concept", name), Fact("finding", finding), Fact("presence", label.presence)}
            facts |= {Fact("side", side)} if side else set()
            facts |= {Fact("size", size)} if size else set()
            facts |= {Fact("change", label.change)} if label.change else set()
        elif label.change == "removed":
            facts |= {Fact("change", "removed"), Fact("absent", finding)}
        else:
            facts.add(Fact("absent", finding))
    return facts


def facts_of_text(study: Study, section: SectionName, text: str) -> frozenset[Fact]:
    """The facts of a sentence of a study: its section, its words, and what is known of its meaning."""
    facts = {Fact("section", section), *(Fact("word", word) for word in words_of(text))}
    return frozenset(facts | facts_of_labels(sentence_labels(study, section, text)) | _study_labels(study, section))


def facts_of_image(study: Study, view: View) -> frozenset[Fact]:
    """The facts of one image: its view, and every finding that the labels of its study call present.

    The absence of findings is left out, because nearly every image lacks nearly every finding. What a prior image
    shows is known on the phantom only.
    """
    labels = study.labels
    if view == "prior_frontal":
        prior = study.recipe.prior if isinstance(study, PhantomStudy) else None
        labels = {} if prior is None else visible_labels(prior, None)
    shown = {name: label for name, label in labels.items() if label.positive and not name.startswith("indication_")}
    return frozenset({Fact("section", view), *facts_of_labels(shown)})


def sentence_labels(study: Study, section: SectionName, text: str) -> Mapping[str, Label]:
    """The labels of one sentence, as far as the source or the phantom's grammar knows them."""
    wanted = normalize(text)
    if section == "findings":
        for sentence in study.sentences:
            if normalize((study.findings or "")[sentence.start : sentence.end]) == wanted:
                return sentence.labels
    if not isinstance(study, PhantomStudy):
        return {}
    if section in ("findings", "prior_report"):
        return meanings().get(wanted, {})
    return {
        name: label
        for name, label in study.labels.items()
        if label.positive and _is_text_concept(name) and CONCEPTS[name].family == section
    }


def holds(rule: Iterable[Fact], facts: frozenset[Fact]) -> bool:
    """Whether all facts of a rule are among the given ones."""
    return all(fact in facts for fact in rule)


def _study_labels(study: Study, section: SectionName) -> set[Fact]:
    """Labels of the whole study, for the findings of a source that has no labels of sentences."""
    if section != "findings" or study.sentences or isinstance(study, PhantomStudy):
        return set()
    return {Fact("label", name) for name, label in study.labels.items() if label.positive}


def _is_text_concept(name: str) -> bool:
    return name in CONCEPTS and CONCEPTS[name].kind == "text"
