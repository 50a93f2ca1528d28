"""The model that SAE-Lens, TransformerLens users and sae-dashboard see: compact rows in, hook points everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_lens_maira.lazy import lazy_names

if TYPE_CHECKING:
    from sae_lens_maira.hooked.model import HookedMaira2, HookedMaira2Config
else:
    _MODEL = "sae_lens_maira.hooked.model"
    __getattr__, __dir__ = lazy_names(__name__, {"HookedMaira2": _MODEL, "HookedMaira2Config": _MODEL})

__all__ = ["HookedMaira2", "HookedMaira2Config"]
