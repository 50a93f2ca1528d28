"""The main figures of a result, and the table that is printed at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sae_lens_maira.concepts.evaluate import LATENTS
from sae_lens_maira.concepts.settings import SUPERVISED

BARS = (0.95, 0.90, 0.85)
_KINDS = {"presence": "labels", "group": "groups", "change": "changes"}
_WIDTH = 16


def figures(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For every kind of question and region: what each set of features reaches.

    Args:
        rows: rows of the table ``concepts``.
    """
    places: dict[tuple[str, str], dict[str, list[Mapping[str, Any]]]] = {}
    for row in rows:
        questions = f"{row['topic'] or ''} {_KINDS[row['kind']]}".strip()
        places.setdefault((questions, row["region"]), {}).setdefault(row["features"], []).append(row)
    found = []
    for (questions, region), sets in places.items():
        kind = "change" if questions.endswith(_KINDS["change"]) else ""
        for name, own in sets.items():
            areas = np.array([row["auroc"] for row in own])
            entry: dict[str, Any] = {
                "questions": questions,
                "region": region,
                "features": name,
                "n": len(own),
                "median": round(float(np.median(areas)), 4),
                **{f"at_least_{bar:.2f}": int((areas >= bar).sum()) for bar in BARS},
                "significant": int(sum(row["q_value"] <= 0.05 for row in own)),
            }
            if kind == "change":
                families = _families(own)
                entry |= {"families": len(families), "families_at_least_0.85": sum(x >= 0.85 for x in families)}
            if name == LATENTS:
                entry["above_control"] = int(sum((row["above_low"] or 0) > 0 for row in own))
            found.append(entry)
    return found


def _families(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Every finding's mean AUROC over the changes that are asked of it."""
    of_family: dict[str, list[float]] = {}
    for row in rows:
        of_family.setdefault(row["concept"].rsplit(": ", 1)[0], []).append(row["auroc"])
    return [float(np.mean(areas)) for areas in of_family.values()]


def describe(found: Sequence[Mapping[str, Any]]) -> str:
    """A table for people: latents, the strongest control and the ceiling, by kind of question and region."""
    lines = [
        f"{'questions':<{_WIDTH}}{'region':<20}{'n':>4}  {'features':<22}{'median':>7}"
        + "".join(f"{f'>={bar:.2f}':>7}" for bar in BARS)
        + f"{'q<=.05':>8}{'above control':>15}"
    ]
    for place in dict.fromkeys((entry["questions"], entry["region"]) for entry in found):
        own = [entry for entry in found if (entry["questions"], entry["region"]) == place]
        for entry in _shown(own):
            is_first = entry["features"] == LATENTS
            head = f"{place[0]:<{_WIDTH}}{place[1]:<20}{entry['n']:>4}" if is_first else " " * (_WIDTH + 24)
            bars = "".join(f"{entry[f'at_least_{bar:.2f}']:>7}" for bar in BARS)
            above = f"{entry['above_control']:>15}" if is_first else ""
            if is_first and "families" in entry:
                above += f"   {entry['families_at_least_0.85']} of {entry['families']} findings at 0.85 on average"
            lines.append(
                f"{head}  {entry['features']:<22}{entry['median']:>7.3f}{bars}{entry['significant']:>8}{above}".rstrip()
            )
    return "\n".join(lines)


def _shown(own: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Latents, the control that reaches the first bar most often, and the supervised references."""
    controls = [entry for entry in own if entry["features"] not in (LATENTS, *SUPERVISED)]
    strongest = sorted(controls, key=lambda entry: (-entry[f"at_least_{BARS[0]:.2f}"], -entry["median"]))[:1]
    return [
        *(entry for entry in own if entry["features"] == LATENTS),
        *strongest,
        *(entry for entry in own if entry["features"] in SUPERVISED),
    ]
