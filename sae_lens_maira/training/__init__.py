"""Training SAEs on MAIRA-2 through SAE-Lens's own runner.

::

    config          TrainConfig: the settings of a run, as in a YAML file in configs/
    runner_config   SAE-Lens's own configurations, made from a TrainConfig
    data            what a run trains on: live or cached activations behind one type
    run             train(): config -> SAE-Lens's runner -> an SAE-Lens folder, resumable
    multi           train_several(): the same for several SAEs on the same tokens
    store           an ActivationsStore whose buffer is saved
    runners         SAE-Lens's runners, which stop between steps and seal their checkpoints
    skipped         studies whose images cannot be used, up to a share of all
    evaluate        explained variance, L0, dead features and losses on held-out studies
    result          a run's folder: checks before a run, files after it
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_lens_maira.errors import ConfigError
from sae_lens_maira.lazy import lazy_names
from sae_lens_maira.training.config import SourceConfig, TrainConfig, load_config

if TYPE_CHECKING:
    from sae_lens_maira.training.run import train
else:
    __getattr__, __dir__ = lazy_names(__name__, {"train": "sae_lens_maira.training.run"})

__all__ = ["ConfigError", "SourceConfig", "TrainConfig", "load_config", "train"]
