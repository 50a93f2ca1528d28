"""Compact rows: studies as short rows of tokens that SAE-Lens can shuffle, batch and replay, and back again."""

from sae_lens_maira.errors import RowError
from sae_lens_maira.rows.policy import TokenPolicy

__all__ = ["RowError", "TokenPolicy"]
