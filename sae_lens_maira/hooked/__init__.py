"""The model that SAE-Lens, TransformerLens users and sae-dashboard see: compact rows in, hook points everywhere."""

from sae_lens_maira.hooked.maira2 import HookedMaira2
from sae_lens_maira.hooked.model import HookedVisionLanguageModel

__all__ = ["HookedMaira2", "HookedVisionLanguageModel"]
