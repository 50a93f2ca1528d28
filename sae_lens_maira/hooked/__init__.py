"""The model as SAE-Lens, TransformerLens users and sae-dashboard use it: compact rows as input, and hook points."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_lens_maira.lazy import lazy_names

if TYPE_CHECKING:
    from sae_lens_maira.hooked.maira2 import HookedMaira2
    from sae_lens_maira.hooked.model import HookedVisionLanguageModel
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "HookedMaira2": "sae_lens_maira.hooked.maira2",
            "HookedVisionLanguageModel": "sae_lens_maira.hooked.model",
        },
    )

__all__ = ["HookedMaira2", "HookedVisionLanguageModel"]
