"""Dashboards: a gallery of every feature with its images, and sae-dashboard's standard pages.

make.py          from an SAE to a gallery         settings.py, page_choice.py    what to make
gallery.py, data_files.py                         what the gallery loads
images.py        small image files                safety.py                      untrusted text
static/          the gallery's page, style and scripts
standard/        sae-dashboard, fed with a recording: its pages, and Neuronpedia's files
serve.py, on_demand.py, origin.py                 `sae-lens-maira view`

What is shown is computed in :mod:`sae_lens_maira.features`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_lens_maira.dashboard.make import DashboardResult, make_dashboards
    from sae_lens_maira.dashboard.settings import DashboardSettings
    from sae_lens_maira.errors import DashboardError

__all__ = ["DashboardError", "DashboardResult", "DashboardSettings", "make_dashboards"]


def __getattr__(name: str) -> Any:
    """Import on demand: serving needs no model."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sae_lens_maira.dashboard import make

    return getattr(make, name)
