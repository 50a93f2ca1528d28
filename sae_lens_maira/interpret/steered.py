"""What changes in a report when a feature is turned up: evidence for an explainer, read from JSON lines.

Each line is ``{"feature": 7, "text": "..."}``; the steering of reports writes such texts, or any program does.
"""

from __future__ import annotations

from pathlib import Path

from sae_lens_maira.features.interpretations import read_interpretations
from sae_lens_maira.interpret.explanation import cleaned


def read_changes(path: Path, n_features: int) -> dict[int, str]:
    """The changes of reports, by feature.

    Raises:
        SaeFormatError: the table is missing or damaged.
    """
    return {row.feature: cleaned(row.text) for row in read_interpretations(path, n_features)}
