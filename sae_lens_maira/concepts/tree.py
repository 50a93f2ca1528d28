"""The phantom's tree of concepts: device, line, side; effusion, side, size."""

from __future__ import annotations

from collections.abc import Iterable

from sae_lens_maira.phantom.words.grammar import stem
from sae_lens_maira.phantom.world.concepts import CONCEPTS, FAMILIES, VISIBLE


def phantom_groups() -> dict[str, tuple[str, ...]]:
    """The inner nodes, by name: all devices and all pathologies, findings on either side, and findings of any size."""
    nodes: dict[str, list[str]] = {}
    for name in VISIBLE:
        concept = CONCEPTS[name]
        for node in dict.fromkeys((concept.kind, stem(concept.family, concept.side), concept.family)):
            nodes.setdefault(node, []).append(name)
    return {node: tuple(members) for node, members in nodes.items() if len(members) > 1}


def is_phantom(names: Iterable[str]) -> bool:
    """Whether labels are the phantom's."""
    return set(VISIBLE) <= set(names)


def phantom_topics() -> dict[str, str]:
    """Whether a concept can be seen or only read in the request."""
    return {name: "text" if concept.kind == "text" else "visible" for name, concept in CONCEPTS.items()}


def phantom_families() -> dict[str, tuple[str, ...]]:
    """The findings on which changes are measured."""
    return dict(FAMILIES)
