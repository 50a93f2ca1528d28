"""The shipped phantom model: its folder, and loading it offline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae_lens_maira.maira2 import Maira2ForConditionalGeneration, Maira2Processor

PHANTOM_PATH = Path(__file__).parents[1] / "weights"
"""A checkpoint folder in MAIRA-2's layout, for ``Maira2ForConditionalGeneration.from_pretrained``."""


def load_phantom() -> tuple[Maira2ForConditionalGeneration, Maira2Processor]:
    """The phantom model, in single precision and in evaluation mode, and its processor."""
    import torch

    from sae_lens_maira.maira2 import Maira2ForConditionalGeneration, Maira2Processor

    model = Maira2ForConditionalGeneration.from_pretrained(PHANTOM_PATH, dtype=torch.float32)
    return model.eval(), Maira2Processor.from_pretrained(PHANTOM_PATH)
