"""The model as SAE-Lens, TransformerLens users and sae-dashboard use it: compact rows as input, and hook points."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_lens_maira.lazy import lazy_names

if TYPE_CHECKING:
    from sae_lens_maira.hooked.edits import Ablate, Add, AddDirection, Cap, Clamp, Scale, ScaleDirection
    from sae_lens_maira.hooked.maira2 import HookedMaira2
    from sae_lens_maira.hooked.model import HookedVisionLanguageModel
    from sae_lens_maira.hooked.where import Where
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "Ablate": "sae_lens_maira.hooked.edits",
            "Add": "sae_lens_maira.hooked.edits",
            "AddDirection": "sae_lens_maira.hooked.edits",
            "Cap": "sae_lens_maira.hooked.edits",
            "Clamp": "sae_lens_maira.hooked.edits",
            "HookedMaira2": "sae_lens_maira.hooked.maira2",
            "HookedVisionLanguageModel": "sae_lens_maira.hooked.model",
            "Scale": "sae_lens_maira.hooked.edits",
            "ScaleDirection": "sae_lens_maira.hooked.edits",
            "Where": "sae_lens_maira.hooked.where",
        },
    )

__all__ = [
    "Ablate",
    "Add",
    "AddDirection",
    "Cap",
    "Clamp",
    "HookedMaira2",
    "HookedVisionLanguageModel",
    "Scale",
    "ScaleDirection",
    "Where",
]
