"""Open-i's MeSH tags as labels of the findings of a phrase list."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from sae_lens_maira.setting_values import read_yaml

_TABLE = Path(__file__).parent / "phrases" / "mesh.yaml"
_SIDES = {"right": ("right",), "left": ("left",), "bilateral": ("right", "left")}


@cache
def _headings(lexicon: str) -> Mapping[str, tuple[tuple[str, str], ...]]:
    """For each finding, the headings that mean it, each with the qualifier that it needs or an empty text."""
    table = read_yaml(_TABLE)[lexicon]
    found = {}
    for finding, tags in table.items():
        split = (str(tag).lower().partition("/") for tag in tags)
        found[str(finding)] = tuple((heading.strip(), qualifier.strip()) for heading, _, qualifier in split)
    return found


def mesh_findings(tags: Iterable[str], lexicon: str) -> dict[str, bool]:
    """Whether a report's tags name each finding; for each side, as ``finding/right``, whether they name it there.

    People tagged what they found worth tagging, so a finding without a tag counts as not named.

    Args:
        tags: major tags of one report.
        lexicon: name of the phrase list, phantom or chexpert.
    """
    split = [[part.strip().lower() for part in tag.split("/")] for tag in tags]
    named: dict[str, bool] = {}
    for finding, wanted in _headings(lexicon).items():
        hits = [
            qualifiers
            for heading, *qualifiers in split
            if any(heading == name and (not needed or needed in qualifiers) for name, needed in wanted)
        ]
        named[finding] = bool(hits)
        for side in ("right", "left"):
            named[f"{finding}/{side}"] = any(
                side in _SIDES.get(qualifier, ()) for qualifiers in hits for qualifier in qualifiers
            )
    return named
