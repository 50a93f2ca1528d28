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

from typing import TYPE_CHECKING

from sae_lens_maira.errors import DashboardError
from sae_lens_maira.lazy import lazy_names

if TYPE_CHECKING:
    from sae_lens_maira.dashboard.make import DashboardResult, DashboardSettings, make_dashboards
else:
    _MAKE = "sae_lens_maira.dashboard.make"
    __getattr__, __dir__ = lazy_names(
        __name__, {"DashboardResult": _MAKE, "DashboardSettings": _MAKE, "make_dashboards": _MAKE}
    )

__all__ = ["DashboardError", "DashboardResult", "DashboardSettings", "make_dashboards"]
