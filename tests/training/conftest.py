"""A training run that is small enough for a test."""

import shutil
from pathlib import Path

import pytest

from sae_lens_maira.files import MARKER
from sae_lens_maira.training.config import TrainConfig
from tests.conftest import CHECKPOINT_PATH

N_TOKENS = 2560
BATCH = 128


@pytest.fixture(scope="session")
def config() -> TrainConfig:
    """A run of 20 steps on the reference checkpoint."""
    return TrainConfig.from_dict(
        {
            "model": {"name": str(CHECKPOINT_PATH), "device": "cpu"},
            "hook_name": "blocks.1.hook_resid_post",
            "context_size": 64,
            "source": {"kind": "phantom", "n_studies": 24, "n_held_out": 8},
            "n_eval_batches": 2,
            "sae": {"architecture": "matryoshka_batchtopk", "d_sae": 96, "k": 8, "matryoshka_widths": [16, 96]},
            "runner": {
                "training_tokens": N_TOKENS,
                "train_batch_size_tokens": BATCH,
                "store_batch_size_prompts": 4,
                "n_batches_in_buffer": 6,
                "lr": 0.001,
                "n_checkpoints": 2,
            },
        }
    )


def copy_mark(run: Path, other: Path) -> None:
    """Make a folder that of an unfinished run: its mark and configuration are those of another folder."""
    for name in (MARKER, "config.yaml"):
        shutil.copy(run / name, other)
