"""Training SAEs on MAIRA-2 through SAE-Lens's own runner.

::

    config      TrainConfig: the mirror of a YAML in configs/
    run         train(): config -> SAE-Lens's runner -> an SAE-Lens folder, resumable
    resumable   an ActivationsStore that remembers its buffer, and a runner that stops between steps
    evaluate    explained variance, L0, dead features and losses on held-out studies
"""

from sae_lens_maira.errors import ConfigError
from sae_lens_maira.training.config import SourceConfig, TrainConfig, load_config

__all__ = ["ConfigError", "SourceConfig", "TrainConfig", "load_config"]
