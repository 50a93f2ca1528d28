"""Why concepts occur together: clinical contexts, and how a patient changes from one study to the next.

A study belongs to a context (intensive care, heart failure, trauma, ...), which decides how likely each concept is, how
the request reads and whether there is a prior. Within a context, how ill the patient is raises or lowers the
probability of all its concepts together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sae_lens_maira.phantom.world.concepts import (
    CONCEPTS,
    FAMILIES,
    SIDES,
    VISIBLE,
    Appearance,
    Extent,
    Side,
    State,
    as_state,
)

_PERMANENT = {"pacemaker", "sternotomy_wires", "hyperinflation"}  # always still there in the next study
_CHRONIC = {
    "cardiomegaly": 0.95,
    "nodule_right": 0.9,
    "nodule_left": 0.9,
    "rib_fracture_right": 0.95,
    "rib_fracture_left": 0.95,
}
_MAX_PRESENT = 6  # keeps reports short


@dataclass(frozen=True, slots=True)
class Context:
    """One clinical setting.

    Args:
        name: unique name.
        share: share of the studies.
        rates: probability of each concept; a name without side or size stands for all concepts that add them.
        indications: what the request may say, as keys of ``requests.INDICATIONS``.
        portable: probability that the image is taken at the bedside.
        with_prior: probability that there is a prior study.
    """

    name: str
    share: float
    rates: Mapping[str, float]
    indications: tuple[str, ...]
    portable: float
    with_prior: float


_CONTEXTS = [
    Context(
        "outpatient",
        share=0.19,
        rates={"nodule": 0.15, "hyperinflation": 0.1, "cardiomegaly": 0.05, "atelectasis": 0.1},
        indications=("screening", "cough", "chest_pain"),
        portable=0.0,
        with_prior=0.35,
    ),
    Context(
        "infection",
        share=0.13,
        rates={"consolidation": 0.75, "effusion": 0.25, "atelectasis": 0.12, "hyperinflation": 0.06, "edema": 0.04},
        indications=("fever", "cough", "dyspnea"),
        portable=0.25,
        with_prior=0.5,
    ),
    Context(
        "heart_failure",
        share=0.15,
        rates={"cardiomegaly": 0.75, "edema": 0.65, "effusion": 0.55, "pacemaker": 0.35, "sternotomy_wires": 0.25},
        indications=("dyspnea", "chest_pain"),
        portable=0.5,
        with_prior=0.65,
    ),
    Context(
        "intensive_care",
        share=0.17,
        rates={
            "endotracheal_tube": 0.75,
            "nasogastric_tube": 0.15,
            "central_line": 0.6,
            "effusion": 0.3,
            "consolidation": 0.3,
            "edema": 0.25,
            "atelectasis": 0.25,
            "pneumothorax": 0.15,
        },
        indications=("tube_check", "dyspnea", "fever"),
        portable=1.0,
        with_prior=0.75,
    ),
    Context(
        "cardiac_surgery",
        share=0.12,
        rates={
            "sternotomy_wires": 0.97,
            "central_line": 0.5,
            "endotracheal_tube": 0.35,
            "atelectasis": 0.4,
            "effusion": 0.4,
            "cardiomegaly": 0.35,
            "pacemaker": 0.2,
            "pneumothorax": 0.25,
        },
        indications=("postoperative", "tube_check"),
        portable=0.8,
        with_prior=0.7,
    ),
    Context(
        "trauma",
        share=0.15,
        rates={
            "rib_fracture": 0.75,
            "pneumothorax": 0.5,
            "effusion": 0.2,
            "consolidation": 0.15,
            "endotracheal_tube": 0.12,
        },
        indications=("trauma", "chest_pain"),
        portable=0.5,
        with_prior=0.4,
    ),
    Context(
        "oncology",
        share=0.11,
        rates={
            "nodule": 0.65,
            "effusion": 0.3,
            "central_line": 0.4,
            "hyperinflation": 0.3,
            "consolidation": 0.1,
            "pneumothorax": 0.12,
        },
        indications=("cancer", "cough", "dyspnea"),
        portable=0.1,
        with_prior=0.6,
    ),
]
CONTEXTS: dict[str, Context] = {context.name: context for context in _CONTEXTS}


def choose_context(rng: np.random.Generator) -> Context:
    """A random context, with probabilities in proportion to the shares."""
    contexts = list(CONTEXTS.values())
    shares = np.array([context.share for context in contexts])
    return contexts[int(rng.choice(len(contexts), p=shares / shares.sum()))]


def sample_state(context: Context, rng: np.random.Generator) -> dict[str, Appearance]:
    """A random state: first how ill the patient is, then each kind of concept with those that come along."""
    illness = float(rng.uniform(0.35, 1.5))  # scales all rates of this patient
    injured: Side = SIDES[int(rng.integers(2))]  # trauma affects one side
    state: dict[str, Appearance] = {}
    for kind, rate in context.rates.items():
        if rng.random() >= min(0.97, rate * illness if rate < 0.9 else rate):
            continue
        match kind:
            case "endotracheal_tube":
                position = "too_low" if rng.random() < 0.4 else "well_placed"
                _add(state, f"endotracheal_tube_{position}", rng)
                if rng.random() < 0.65:  # most ventilated patients are fed through a tube
                    _add(state, "nasogastric_tube", rng)
            case "effusion" | "atelectasis" | "consolidation" | "nodule":
                both = {"effusion": 0.35, "atelectasis": 0.25, "consolidation": 0.2, "nodule": 0.15}[kind]
                first = injured if context.name == "trauma" or rng.random() < 0.5 else SIDES[int(rng.integers(2))]
                for side in SIDES if rng.random() < both else (first,):
                    size = f"_{'large' if rng.random() < 0.45 else 'small'}" if kind == "effusion" else ""
                    _add(state, f"{kind}_{side}{size}", rng)
            case "pneumothorax" | "rib_fracture":
                _add(state, f"{kind}_{injured}", rng)
            case "central_line":
                _add(state, f"central_line_{'right' if rng.random() < 0.55 else 'left'}", rng)
            case _:
                _add(state, kind, rng)
    return _settle(state, rng)


def sample_unrelated(rng: np.random.Generator) -> dict[str, Appearance]:
    """Up to three concepts drawn independently of each other and with equal probabilities."""
    state: dict[str, Appearance] = {}
    for k in rng.choice(len(VISIBLE), int(rng.integers(4)), replace=False):
        if not any(member in state for member in FAMILIES[CONCEPTS[VISIBLE[k]].family]):
            _add(state, VISIBLE[k], rng)
    return _settle(state, rng)


def evolve(state: State, fresh: State, rng: np.random.Generator) -> dict[str, Appearance]:
    """The same patient some time later.

    Most concepts of ``state`` stay, some grow, shrink or disappear, and some concepts of ``fresh`` appear.
    """
    later: dict[str, Appearance] = {}
    for name, appearance in state.items():
        concept = CONCEPTS[name]
        stays = 1.0 if name in _PERMANENT else _CHRONIC.get(name, 0.76)
        if rng.random() >= stays:
            continue
        members = FAMILIES[concept.family]
        sizes: list[tuple[Extent, str]] = sorted((extent, m) for m in members for extent in CONCEPTS[m].extents)
        if concept.ordered and len(sizes) > 1 and rng.random() < 0.5:
            extent, member = next(pair for pair in sizes if pair != (appearance.extent, name))
            later[member] = Appearance(extent, appearance.subtle)
        elif not concept.ordered and rng.random() < 0.3:  # the tube was moved, or slipped
            _add(later, next(member for member in FAMILIES[concept.family] if member != name), rng)
        else:
            later[name] = appearance
    for name, appearance in fresh.items():
        if rng.random() < 0.35 and not any(member in later for member in FAMILIES[CONCEPTS[name].family]):
            later[name] = appearance
    return _settle(later, rng)


def _add(state: dict[str, Appearance], name: str, rng: np.random.Generator) -> None:
    concept = CONCEPTS[name]
    extent: Extent = concept.extents[int(rng.integers(len(concept.extents)))]
    state[name] = Appearance(extent, bool(concept.subtle and rng.random() < 0.2))


def _settle(state: dict[str, Appearance], rng: np.random.Generator) -> dict[str, Appearance]:
    """Drop concepts that others would hide, then random ones until few enough for one report are left."""
    for side in SIDES:
        if f"effusion_{side}_large" in state:
            for hidden in (f"atelectasis_{side}", f"consolidation_{side}"):
                state.pop(hidden, None)
        if f"consolidation_{side}" in state:
            state.pop(f"atelectasis_{side}", None)
        if f"pneumothorax_{side}" in state:
            state.pop(f"nodule_{side}", None)
    if "hyperinflation" in state:
        state.pop("edema", None)
        state.pop("cardiomegaly", None)
    names = [name for name in VISIBLE if name in state]
    while len(names) > _MAX_PRESENT:
        names.pop(int(rng.integers(len(names))))
    return as_state({name: state[name] for name in names})
