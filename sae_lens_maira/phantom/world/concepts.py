"""The phantom's concepts: the closed list of what a study can show or say.

Bouzid et al. 2025 (arXiv 2507.12950) tell four kinds apart. Devices and pathologies are *visible*; a longitudinal
change compares a visible concept with the prior image; text concepts occur only in the request. Sides are the
patient's: the patient's right is on the image's left.

Changes are measured per *family*. The two sizes of the right effusion are one family, so that from small to large is
"larger", rather than one concept removed and another one new. The members of some families have no order (the positions
of a tube's tip); then another member than before is new.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from sae_lens_maira.data.study import Change, Label

Kind = Literal["device", "pathology", "text"]
Side = Literal["right", "left"]
Extent = Literal[1, 2]
SIDES: tuple[Side, ...] = get_args(Side)
CHANGES: tuple[Change, ...] = get_args(Change)


@dataclass(frozen=True, slots=True)
class Concept:
    """One concept.

    Args:
        name: unique name.
        kind: device, pathology or text.
        family: the concepts that a change is measured on; for a text concept, its section.
        side: of the patient; None if it has no side.
        extents: the sizes in which it can be drawn.
        subtle: whether it can be faint, so that the report calls it uncertain.
        ordered: whether the members of its family differ in size.
    """

    name: str
    kind: Kind
    family: str
    side: Side | None = None
    extents: tuple[Extent, ...] = (1,)
    subtle: bool = False
    ordered: bool = True


class Appearance(NamedTuple):
    """How a present concept is drawn: its extent, and whether it is faint (the report then hedges)."""

    extent: Extent = 1
    subtle: bool = False


State = Mapping[str, Appearance]
"""What is visible in a patient at one time: from concept to appearance. A concept that is not in it is absent."""


def _sided(family: str, kind: Kind, extents: tuple[Extent, ...] = (1,), *, subtle: bool = False) -> list[Concept]:
    return [Concept(f"{family}_{side}", kind, f"{family}_{side}", side, extents, subtle) for side in SIDES]


_VISIBLE = [
    Concept("pacemaker", "device", "pacemaker"),
    Concept("endotracheal_tube_well_placed", "device", "endotracheal_tube", ordered=False),
    Concept("endotracheal_tube_too_low", "device", "endotracheal_tube", ordered=False),
    Concept("nasogastric_tube", "device", "nasogastric_tube"),
    *_sided("central_line", "device"),
    Concept("sternotomy_wires", "device", "sternotomy_wires"),
    Concept("effusion_right_small", "pathology", "effusion_right", "right", (1,)),
    Concept("effusion_right_large", "pathology", "effusion_right", "right", (2,)),
    Concept("effusion_left_small", "pathology", "effusion_left", "left", (1,)),
    Concept("effusion_left_large", "pathology", "effusion_left", "left", (2,)),
    Concept("cardiomegaly", "pathology", "cardiomegaly"),
    *_sided("pneumothorax", "pathology", (1, 2), subtle=True),
    *_sided("consolidation", "pathology", (1, 2), subtle=True),
    Concept("edema", "pathology", "edema", None, (1, 2), subtle=True),
    *_sided("atelectasis", "pathology", subtle=True),
    *_sided("nodule", "pathology", (1, 2), subtle=True),
    *_sided("rib_fracture", "pathology", subtle=True),
    Concept("hyperinflation", "pathology", "hyperinflation"),
]

_TEXT = [
    Concept(f"{section}_{meaning}", "text", section)
    for section, meanings in {
        "indication": (
            "dyspnea",
            "chest_pain",
            "fever",
            "cough",
            "tube_check",
            "postoperative",
            "trauma",
            "cancer",
            "screening",
        ),
        "technique": ("portable", "two_views", "single_upright"),
        "comparison": ("none", "prior"),
    }.items()
    for meaning in meanings
]

CONCEPTS: dict[str, Concept] = {concept.name: concept for concept in (*_VISIBLE, *_TEXT)}
VISIBLE: tuple[str, ...] = tuple(concept.name for concept in _VISIBLE)
TEXT_ONLY: tuple[str, ...] = tuple(concept.name for concept in _TEXT)
FAMILIES: dict[str, tuple[str, ...]] = {
    family: tuple(c.name for c in _VISIBLE if c.family == family)
    for family in dict.fromkeys(c.family for c in _VISIBLE)
}


def as_state(concepts: Iterable[str] | State) -> dict[str, Appearance]:
    """A checked state, in the order of ``VISIBLE``. A bare name gets its smallest extent and is not faint.

    Raises:
        ValueError: a concept is unknown or cannot look like that, or two concepts exclude each other.
    """
    given = dict(concepts) if isinstance(concepts, Mapping) else dict.fromkeys(concepts)
    for name, appearance in given.items():
        if name not in VISIBLE:
            raise ValueError(f"{name!r} is not a visible concept of the phantom; choose from: {', '.join(VISIBLE)}")
        concept = CONCEPTS[name]
        if appearance is None:
            given[name] = Appearance(concept.extents[0])
        elif appearance.extent not in concept.extents or (appearance.subtle and not concept.subtle):
            raise ValueError(
                f"{name} cannot look like {appearance}: extents {concept.extents}, subtle allowed: {concept.subtle}"
            )
    for family, members in FAMILIES.items():
        if sum(name in given for name in members) > 1:
            raise ValueError(f"only one of {', '.join(members)} can be present: they are states of one {family}")
    return {name: given[name] or Appearance() for name in VISIBLE if name in given}


def compare(name: str, state: State, prior: State) -> Change | None:
    """How a concept changed from ``prior`` to ``state``.

    "Removed" applies to a whole family: once no member is present, every member is removed. A member that is absent
    while another member is present, or that was absent before too, has no change.
    """
    concept = CONCEPTS[name]
    before = [other for other in FAMILIES[concept.family] if other in prior]
    if name not in state:
        family_goes_on = any(other in state for other in FAMILIES[concept.family])
        return "removed" if before and not family_goes_on else None
    if not before or (before[0] != name and not concept.ordered):
        return "new"
    extent, extent_before = state[name].extent, prior[before[0]].extent
    if extent == extent_before:
        return "unchanged"
    return "larger" if extent > extent_before else "smaller"


def visible_labels(state: State, prior: State | None) -> dict[str, Label]:
    """The true label of every visible concept, with changes if there is a prior."""
    labels = {}
    for name in VISIBLE:
        presence = ("uncertain" if state[name].subtle else "present") if name in state else "absent"
        labels[name] = Label(presence, None if prior is None else compare(name, state, prior))
    return labels
