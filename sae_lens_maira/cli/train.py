"""``sae-lens-maira train``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from sae_lens_maira.cli.arguments import Overrides, check_out
from sae_lens_maira.settings import Settings
from sae_lens_maira.training.config import TrainConfig


@dataclass(frozen=True)
class TrainOptions(Settings):
    """Options of the verb.

    Args:
        config: a YAML such as configs/phantom.yaml.
        out: the result's folder.
        resume: continue from the newest checkpoint in --out.
        overwrite: allow --out to hold an earlier run.
    """

    GROUP = "--"

    config: Path
    out: Path
    resume: bool = False
    overwrite: bool = False

    def check(self) -> None:
        check_out(self.out)


def train(options: TrainOptions, settings: Overrides[TrainConfig]) -> None:
    """Train one SAE or several with the settings of a YAML. Any of them can be overridden here: --sae.k 32."""
    config = settings.over(options.config)

    from sae_lens_maira.training.multi import train_several
    from sae_lens_maira.training.run import train

    resume, overwrite = options.resume, options.overwrite
    if config.saes:
        results = list(train_several(config, options.out, resume=resume, overwrite=overwrite).values())
    else:
        results = [train(config, options.out, resume=resume, overwrite=overwrite)]
    for result in results:
        sys.stdout.write(f"{result.path}: {result.scores.describe()}\n")
