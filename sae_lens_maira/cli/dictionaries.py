"""``sae-lens-maira dictionaries``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from sae_lens_maira.cli.arguments import Overrides, check_out
from sae_lens_maira.concepts.dictionaries.settings import DictionariesConfig
from sae_lens_maira.settings import Settings


@dataclass(frozen=True)
class DictionariesOptions(Settings):
    """Options of the verb.

    Args:
        config: a YAML such as configs/dictionaries_phantom.yaml.
        out: the folder of the results, the cache and the SAEs.
        dry_run: check the settings and say what would be done.
        overwrite: drop scores in --out that were made with other settings.
    """

    GROUP = "--"

    config: Path
    out: Path
    dry_run: bool = False
    overwrite: bool = False

    def check(self) -> None:
        check_out(self.out)


def dictionaries(options: DictionariesOptions, settings: Overrides[DictionariesConfig]) -> None:
    """Compare dictionaries of equal width and L0 on the phantom's exact truth. A stopped run goes on where it was."""
    config = settings.over(options.config)
    if options.dry_run:
        names = ", ".join(config.training.saes)
        sys.stdout.write(
            f"would train {names} with seeds {', '.join(map(str, config.seeds))} on {config.n_training} studies and "
            f"score them on {config.training.source.n_held_out} others and {24 * config.pairs_per_concept} pairs\n"
        )
        return

    from sae_lens_maira.concepts.dictionaries.run import describe, run_benchmark

    result = run_benchmark(config, options.out, overwrite=options.overwrite)
    sys.stdout.write(f"{describe(result)}\n{options.out}: {len(config.seeds)} seeds\n")
