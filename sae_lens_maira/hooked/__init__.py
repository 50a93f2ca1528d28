"""The model that SAE-Lens, TransformerLens users and sae-dashboard see: compact rows in, hook points everywhere."""

from sae_lens_maira.hooked.model import HookedMaira2, HookedMaira2Config

__all__ = ["HookedMaira2", "HookedMaira2Config"]
