"""Dashboards: a gallery of every feature with its images, and sae-dashboard's standard pages.

make.py        from an SAE to a gallery    recording.py   activations, from the model or a cache
encoding.py    what fires where            sparse.py      sparse matrices on disk
statistics.py  numbers of every feature    labels.py      which label a feature goes with
table.py       all of these together       gallery.py, data_files.py    what the gallery loads
images.py      small image files           static/        the gallery's page, style and scripts
replay.py      sae-dashboard, fed with a recording        pages.py, neuronpedia.py   what it writes
safety.py      untrusted text              serve.py, on_demand.py, origin.py    `sae-lens-maira view`
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_lens_maira.dashboard.make import DashboardResult, DashboardSettings, make_dashboards
    from sae_lens_maira.errors import DashboardError

__all__ = ["DashboardError", "DashboardResult", "DashboardSettings", "make_dashboards"]


def __getattr__(name: str) -> Any:
    """Import on demand: serving needs no model."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sae_lens_maira.dashboard import make

    return getattr(make, name)
