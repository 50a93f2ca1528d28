"""The request: indication, technique and comparison, and the text concepts that they express.

No image shows these. As in the findings, each concept has at least three wordings.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sae_lens_maira.data.study import Label
from sae_lens_maira.phantom.world.concepts import TEXT_ONLY

INDICATIONS: dict[str, tuple[str, ...]] = {
    "dyspnea": ("Shortness of breath.", "Worsening dyspnea.", "Increasing breathlessness on exertion."),
    "chest_pain": ("Chest pain.", "Acute pain in the chest.", "Pleuritic pain, evaluate."),
    "fever": (
        "Fever, evaluate for pneumonia.",
        "Febrile, rule out infection.",
        "Rising temperature and leukocytosis.",
    ),
    "cough": ("Productive cough.", "Persistent cough for three weeks.", "Coughing with sputum."),
    "tube_check": (
        "Evaluate line and tube position.",
        "Intubated, check tube placement.",
        "Interval assessment of support devices.",
    ),
    "postoperative": (
        "Status post cardiac surgery.",
        "Postoperative day two after bypass.",
        "Recent valve replacement, follow up.",
    ),
    "trauma": ("Motor vehicle accident.", "Fall from a ladder.", "Blunt trauma to the chest."),
    "cancer": ("History of cancer, staging.", "Known malignancy, follow up.", "Evaluate for metastases."),
    "screening": (
        "Preoperative evaluation.",
        "Routine examination.",
        "Positive tuberculin test, no symptoms.",
    ),
}
TECHNIQUES: dict[str, tuple[str, ...]] = {
    "portable": ("AP portable chest.", "Single portable AP view.", "Portable semi upright radiograph."),
    "two_views": (
        "PA and lateral views of the chest.",
        "Frontal and lateral radiographs.",
        "Two views of the chest.",
    ),
    "single_upright": ("Single upright PA view.", "PA chest radiograph.", "Frontal view, upright."),
}
COMPARISONS: dict[str, tuple[str, ...]] = {
    "none": ("None.", "None available.", "No prior studies."),
    "prior": ("Chest radiograph from the prior day.", "Prior chest radiograph.", "Radiograph of last week."),
}


class Request(NamedTuple):
    """The three sections, and the labels of all text concepts."""

    indication: str
    technique: str
    comparison: str
    labels: dict[str, Label]


def write_request(indication: str, technique: str, comparison: str, rng: np.random.Generator) -> Request:
    """Word a request with given meanings, which are keys of the tables above."""
    said = {f"indication_{indication}", f"technique_{technique}", f"comparison_{comparison}"}
    return Request(
        _pick(INDICATIONS[indication], rng),
        _pick(TECHNIQUES[technique], rng),
        _pick(COMPARISONS[comparison], rng),
        {name: Label("present" if name in said else "absent") for name in TEXT_ONLY},
    )


def _pick(wordings: tuple[str, ...], rng: np.random.Generator) -> str:
    return wordings[int(rng.integers(len(wordings)))]
