"""Dashboards: a gallery of every feature with its images, and sae-dashboard's standard pages.

make.py          from an SAE to a gallery         settings.py, page_choice.py    what to make
gallery.py, data_files.py                         what the gallery loads
images.py        small image files                safety.py                      untrusted text
static/          the gallery's page, style and scripts
standard/        sae-dashboard, fed with a recording: its pages, and Neuronpedia's files
serve.py, on_demand.py, origin.py                 ``sae-lens-maira view``

What is shown is computed in :mod:`sae_lens_maira.features`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_lens_maira.errors import DashboardError
from sae_lens_maira.lazy import lazy_names

if TYPE_CHECKING:
    from sae_lens_maira.dashboard.make import DashboardResult, make_dashboards
    from sae_lens_maira.dashboard.settings import DashboardSettings
else:
    _MAKE = "sae_lens_maira.dashboard.make"
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "DashboardResult": _MAKE,
            "DashboardSettings": "sae_lens_maira.dashboard.settings",
            "make_dashboards": _MAKE,
        },
    )

__all__ = ["DashboardError", "DashboardResult", "DashboardSettings", "make_dashboards"]
