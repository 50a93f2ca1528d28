"""The words of the reports, without logic: ``grammar`` turns them into sentences.

Every concept has at least three noun phrases, so that no concept is tied to one token, and some whole clauses.
``{side}`` is the patient's side. Spelling is American, and the style is that of radiology reports.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from sae_lens_maira.data.study import Change

Section = Literal["devices", "heart", "lungs", "pleura", "bones"]


class Noun(NamedTuple):
    """A noun phrase: its article ("a", "an" or none), the phrase itself, and whether it takes a plural verb."""

    article: str
    phrase: str
    plural: bool = False


NOUNS: dict[str, tuple[Noun, ...]] = {
    "pacemaker": (
        Noun("a", "pacemaker"),
        Noun("a", "left chest wall pacemaker with two leads"),
        Noun("a", "dual lead pacing device"),
    ),
    "endotracheal_tube_well_placed": (
        Noun("an", "endotracheal tube in standard position"),
        Noun("an", "endotracheal tube with its tip above the carina"),
        Noun("a", "well positioned breathing tube"),
    ),
    "endotracheal_tube_too_low": (
        Noun("an", "endotracheal tube with its tip in the right main bronchus"),
        Noun("a", "low lying breathing tube"),
        Noun("an", "endotracheal tube that extends beyond the carina"),
    ),
    "nasogastric_tube": (
        Noun("a", "nasogastric tube"),
        Noun("an", "enteric tube that ends in the stomach"),
        Noun("a", "feeding tube below the diaphragm"),
    ),
    "central_line": (
        Noun("a", "{side} central venous catheter"),
        Noun("a", "{side} sided central line"),
        Noun("a", "venous catheter from the {side}"),
    ),
    "sternotomy_wires": (
        Noun("", "median sternotomy wires", plural=True),
        Noun("", "midline sternal wires", plural=True),
        Noun("", "sternal cerclage loops", plural=True),
    ),
    "effusion_small": (
        Noun("a", "small {side} pleural effusion"),
        Noun("a", "small amount of {side} pleural fluid"),
        Noun("a", "trace effusion at the {side} base"),
    ),
    "effusion_large": (
        Noun("a", "large {side} pleural effusion"),
        Noun("a", "large amount of {side} pleural fluid"),
        Noun("a", "sizable effusion at the {side} base"),
    ),
    "cardiomegaly": (
        Noun("", "cardiomegaly"),
        Noun("an", "enlarged heart"),
        Noun("", "enlargement of the cardiac silhouette"),
    ),
    "pneumothorax": (
        Noun("a", "{side} pneumothorax"),
        Noun("a", "{side} apical pneumothorax"),
        Noun("", "pleural air on the {side}"),
    ),
    "consolidation": (
        Noun("", "{side} lung consolidation"),
        Noun("a", "{side} airspace opacity"),
        Noun("a", "dense opacity in the {side} lung"),
    ),
    "edema": (
        Noun("", "pulmonary edema"),
        Noun("", "perihilar interstitial edema"),
        Noun("", "pulmonary vascular congestion"),
    ),
    "atelectasis": (
        Noun("", "{side} basilar atelectasis"),
        Noun("", "linear atelectasis at the {side} base"),
        Noun("", "linear bands of volume loss at the {side} base", plural=True),
    ),
    "nodule": (
        Noun("a", "{side} lung nodule"),
        Noun("a", "nodule in the {side} lung"),
        Noun("a", "{side} rounded pulmonary lesion"),
    ),
    "rib_fracture": (
        Noun("", "{side} rib fractures", plural=True),
        Noun("", "displaced fractures of {side} ribs", plural=True),
        Noun("", "broken lateral ribs on the {side}", plural=True),
    ),
    "hyperinflation": (
        Noun("", "hyperinflation of the lungs"),
        Noun("", "hyperinflated lungs with flat diaphragms", plural=True),
        Noun("", "pulmonary overinflation"),
    ),
}

CLAUSES: dict[str, tuple[str, ...]] = {
    "pacemaker": ("pacemaker leads end in the right atrium and ventricle",),
    "endotracheal_tube_well_placed": ("the endotracheal tube ends above the carina",),
    "endotracheal_tube_too_low": ("the endotracheal tube ends in the right main bronchus",),
    "nasogastric_tube": ("the nasogastric tube ends in the stomach",),
    "central_line": ("the {side} central line ends in the superior vena cava",),
    "sternotomy_wires": ("the sternotomy wires are intact",),
    "effusion_small": ("the {side} costophrenic angle is blunted by a little fluid",),
    "effusion_large": ("the {side} lower hemithorax is filled with fluid",),
    "cardiomegaly": ("the heart is enlarged", "the cardiac silhouette is enlarged"),
    "pneumothorax": ("a pleural line marks a {side} pneumothorax",),
    "consolidation": ("the {side} lung is consolidated",),
    "edema": ("perihilar haze indicates edema",),
    "atelectasis": ("plate like opacities at the {side} base indicate atelectasis",),
    "nodule": ("a round opacity projects over the {side} lung",),
    "rib_fracture": ("several {side} ribs are fractured",),
    "hyperinflation": ("the lungs are hyperinflated",),
}
"""Statements that a concept is present, without capital and period."""

REMOVED_NOUNS: dict[str, tuple[str, ...]] = {
    "pacemaker": ("pacemaker", "pacing device"),
    "endotracheal_tube": ("endotracheal tube", "tracheal tube"),
    "nasogastric_tube": ("nasogastric tube", "enteric tube"),
    "central_line": ("{side} central line", "{side} central venous catheter"),
    "sternotomy_wires": ("set of sternal wires", "set of sternotomy wires"),
    "effusion": ("{side} pleural effusion", "{side} pleural fluid"),
    "cardiomegaly": ("cardiomegaly", "cardiac enlargement"),
    "pneumothorax": ("{side} pneumothorax", "{side} pleural air"),
    "consolidation": ("{side} lung consolidation", "{side} airspace opacity"),
    "edema": ("pulmonary edema", "pulmonary vascular congestion"),
    "atelectasis": ("{side} basilar atelectasis", "{side} basal volume loss"),
    "nodule": ("{side} lung nodule", "{side} pulmonary lesion"),
    "rib_fracture": ("deformity of {side} rib fractures", "{side} rib deformity"),
    "hyperinflation": ("hyperinflation", "pulmonary overinflation"),
}
"""Names of a family that is gone, without size or position, which the current image no longer shows."""

SUFFIXES: dict[Change | None, tuple[str, ...]] = {
    None: ("",),
    "new": (", new from the prior", ", new since the prior study", ", not seen on the prior"),
    "larger": (", larger than on the prior", ", increased from the prior", ", worse than on the prior"),
    "smaller": (", smaller than on the prior", ", decreased from the prior", ", improved from the prior"),
    "unchanged": (", unchanged from the prior", ", similar to the prior", ", stable since the prior study"),
    "removed": (),
}

NORMAL: tuple[tuple[Section | Literal["overall"], tuple[str, ...], tuple[str, ...]], ...] = (
    (
        "heart",
        ("the heart size is normal", "heart size is within normal limits", "the cardiac silhouette is not enlarged"),
        ("cardiomegaly",),
    ),
    (
        "lungs",
        ("the lungs are clear", "both lungs are clear", "no focal opacity in the lungs"),
        ("consolidation", "edema", "atelectasis", "nodule"),
    ),
    (
        "lungs",
        ("no consolidation", "no focal consolidation", "there is no airspace consolidation"),
        ("consolidation",),
    ),
    ("lungs", ("no pulmonary edema", "there is no edema", "no evidence of pulmonary edema"), ("edema",)),
    ("lungs", ("no suspicious nodule", "there is no lung nodule", "no pulmonary nodule is seen"), ("nodule",)),
    ("lungs", ("lung volumes are normal", "the lungs are normally inflated", "no hyperinflation"), ("hyperinflation",)),
    (
        "pleura",
        (
            "no pleural effusion or pneumothorax",
            "there is no effusion or pneumothorax",
            "no pneumothorax or pleural fluid",
        ),
        ("effusion", "pneumothorax"),
    ),
    ("pleura", ("no pneumothorax", "there is no pneumothorax", "no evidence of pneumothorax"), ("pneumothorax",)),
    (
        "pleura",
        ("no pleural effusion", "there is no pleural effusion", "the costophrenic angles are sharp"),
        ("effusion",),
    ),
    ("bones", ("no acute fracture", "the ribs are intact", "there is no rib fracture"), ("rib_fracture",)),
    (
        "devices",
        ("no support devices", "no lines or tubes", "there are no support devices"),
        ("endotracheal_tube", "nasogastric_tube", "central_line"),
    ),
    (
        "overall",
        ("no acute cardiopulmonary abnormality", "no acute abnormality in the chest", "the chest is normal for age"),
        (
            "effusion",
            "cardiomegaly",
            "pneumothorax",
            "consolidation",
            "edema",
            "atelectasis",
            "nodule",
            "rib_fracture",
            "hyperinflation",
        ),
    ),
)
"""Statements of normal findings: their section, their wordings, and the families that they say are absent."""

SECTION_OF: dict[str, Section] = {
    **dict.fromkeys(
        ("pacemaker", "endotracheal_tube", "nasogastric_tube", "central_line", "sternotomy_wires"), "devices"
    ),
    **dict.fromkeys(("consolidation", "edema", "atelectasis", "nodule", "hyperinflation"), "lungs"),
    **dict.fromkeys(("effusion", "pneumothorax"), "pleura"),
    "cardiomegaly": "heart",
    "rib_fracture": "bones",
}
"""The section of a key of the word lists; as in ``NORMAL``, keys have no side."""

SECTION_ORDERS: tuple[tuple[Section, ...], ...] = (
    ("devices", "lungs", "pleura", "heart", "bones"),
    ("devices", "heart", "lungs", "pleura", "bones"),
    ("heart", "lungs", "pleura", "bones", "devices"),
    ("lungs", "pleura", "heart", "bones", "devices"),
)
