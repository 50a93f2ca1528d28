"""Open-i's MeSH tags, drawn by the phantom.

A tag is a heading and its qualifiers: ``Pleural Effusion/left/small``. The phantom knows fewer findings than Open-i:
headings that resemble none of them are not drawn, and a side that a tag leaves open is chosen by the report's own
random numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np

from sae_lens_maira.data.openi_reports import OpeniReport
from sae_lens_maira.phantom.generate import GENERATOR_VERSION
from sae_lens_maira.phantom.world.concepts import CONCEPTS, SIDES, Appearance, Extent, Side, as_state
from sae_lens_maira.phantom.world.film import Shot
from sae_lens_maira.phantom.world.scene import PhantomImage

_LARGE = {"large", "moderate", "severe", "diffuse", "multiple", "multilobar", "extensive", "massive"}
_CONCEPTS: dict[str, str] = {
    "pleural effusion": "effusion",
    "hydropneumothorax": "effusion pneumothorax",
    "hemothorax": "effusion",
    "hemopneumothorax": "effusion pneumothorax",
    "cardiomegaly": "cardiomegaly",
    "heart failure": "cardiomegaly edema",
    "pulmonary atelectasis": "atelectasis",
    "volume loss": "atelectasis",
    "opacity": "consolidation",
    "airspace disease": "consolidation",
    "consolidation": "consolidation",
    "infiltrate": "consolidation",
    "pneumonia": "consolidation",
    "pneumothorax": "pneumothorax",
    "pulmonary edema": "edema",
    "pulmonary congestion": "edema",
    "nodule": "nodule",
    "mass": "nodule",
    "granuloma": "nodule",
    "calcified granuloma": "nodule",
    "emphysema": "hyperinflation",
    "pulmonary emphysema": "hyperinflation",
    "lung, hyperlucent": "hyperinflation",
    "pulmonary disease, chronic obstructive": "hyperinflation",
    "catheters, indwelling": "central_line",
    "implanted medical device": "pacemaker",
}
"""From a MeSH heading to the phantom's findings, without side and size."""
_QUALIFIED: dict[tuple[str, str], str] = {
    ("cardiac shadow", "enlarged"): "cardiomegaly",
    ("heart", "enlarged"): "cardiomegaly",
    ("costophrenic angle", "blunted"): "effusion",
    ("lung", "hyperdistention"): "hyperinflation",
    ("diaphragm", "flattened"): "hyperinflation",
    ("fractures, bone", "ribs"): "rib_fracture",
    ("tube, inserted", "trachea"): "endotracheal_tube_well_placed",
    ("tube, inserted", "esophagus"): "nasogastric_tube",
    ("tube, inserted", "abdomen"): "nasogastric_tube",
}
"""From a heading and one of its qualifiers to a finding, for headings that mean nothing to the phantom alone."""
_AUTOMATIC = {"sternotomy": "sternotomy_wires", "cabg": "sternotomy_wires", "pacemaker, artificial": "pacemaker"}


@dataclass(frozen=True, slots=True)
class PhantomDrawer:
    """Draws the tags of Open-i's reports that have no image; the same report always gives the same images."""

    version: str = f"phantom {GENERATOR_VERSION}"

    def draw(self, report: OpeniReport, view: Literal["frontal", "lateral"]) -> PhantomImage:
        """The image of one view; the body and the exposure follow from the report's id."""
        seed = _seed(report.report_id)
        shot = Shot.sample(np.random.default_rng([seed, 0 if view == "frontal" else 1]))
        return PhantomImage(seed, phantom_state(report.report_id, report.major, report.automatic), shot, view)


def phantom_state(report_id: str, major: Iterable[str], automatic: Iterable[str] = ()) -> dict[str, Appearance]:
    """The state that a report's tags describe; it depends on the id and on the set of tags, and not on their order."""
    rng = np.random.default_rng(_seed(report_id))
    open_side = SIDES[int(rng.integers(2))]
    wanted: dict[str, Extent] = {}
    for family, sides, extent in (finding for tag in sorted(major) for finding in _findings(tag)):
        for side in sides or (open_side,):
            name = f"{family}_{side}" if family in _SIDED else family
            wanted[name] = cast(Extent, max(extent, wanted.get(name, 1)))
    for tag in automatic:
        if (name := _AUTOMATIC.get(tag.lower())) is not None:
            wanted.setdefault(name, 1)
    state: dict[str, Appearance] = {}
    for name, extent in wanted.items():
        if name.startswith("effusion"):
            state[f"{name}_{'small' if extent == 1 else 'large'}"] = Appearance(extent)
        else:
            state[name] = Appearance(cast(Extent, min(extent, max(CONCEPTS[name].extents))))
    return as_state(state)


_SIDED = {concept.name.split("_right")[0] for concept in CONCEPTS.values() if "_right" in concept.name}


def _findings(tag: str) -> Iterator[tuple[str, tuple[Side, ...], Extent]]:
    """The findings of a tag: name without side, sides (none if the tag leaves the side open) and extent."""
    heading, *qualifiers = (part.strip().lower() for part in tag.split("/"))
    names = _CONCEPTS.get(heading, "").split()
    names += [name for (of, qualifier), name in _QUALIFIED.items() if of == heading and qualifier in qualifiers]
    sides: tuple[Side, ...] = tuple(side for side in SIDES if side in qualifiers or "bilateral" in qualifiers)
    extent: Extent = 2 if _LARGE & set(qualifiers) else 1
    for name in names:
        yield name, sides, extent


def _seed(report_id: str) -> int:
    return int.from_bytes(hashlib.sha256(report_id.encode()).digest()[:4], "big") >> 1
