"""Where things are kept that can be made again: rows, and images that were unpacked."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache_path() -> Path:
    """``$SAE_LENS_MAIRA_CACHE``, or ``~/.cache/sae-lens-maira``."""
    return Path(os.environ.get("SAE_LENS_MAIRA_CACHE", "~/.cache/sae-lens-maira")).expanduser()
