"""``sae-lens-maira import``."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from sae_lens_maira.cli.arguments import check_out
from sae_lens_maira.settings import Settings


@dataclass(frozen=True)
class ImportOptions(Settings):
    """Options of the verb.

    Args:
        source: a folder, a weights file, or a Hub repository such as microsoft/maira-2-sae.
        out: the folder to write.
        folder: the SAE's folder in a Hub repository.
        interpretations: a table of feature descriptions, on disk or in the repository.
        overwrite: replace an earlier import or training run in --out.
    """

    GROUP = "--"

    source: str = field(metadata={"positional": True})
    out: Path
    folder: str = ""
    interpretations: str | None = None
    overwrite: bool = False

    def check(self) -> None:
        check_out(self.out)


def import_sae(options: ImportOptions) -> None:
    """Convert an SAE of dictionary_learning to SAE-Lens's format, with its interpretations if there are any."""
    from sae_lens_maira.share import import_sae

    result = import_sae(
        options.source, options.out, options.folder, options.interpretations, overwrite=options.overwrite
    )
    sys.stdout.write(f"{result.path}: SAE-Lens's format, {result.n_interpretations} interpretations\n")
