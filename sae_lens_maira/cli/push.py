"""``sae-lens-maira push``."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from sae_lens_maira.errors import SaeFormatError, printable
from sae_lens_maira.files import from_json
from sae_lens_maira.settings import Settings


@dataclass(frozen=True)
class PushOptions(Settings):
    """Options of the verb.

    Args:
        source: the folder of an SAE, or a folder of such folders.
        repository: the Hub repository, as owner/name.
        name: the SAE's folder on the Hub; by default, the name of its local folder.
        public: create the repository public; otherwise it is private.
        dry_run: write the files to this folder instead of uploading them.
        license: the SAE's license, for the model card.
        note: a paragraph for the model card.
    """

    GROUP = "--"

    source: Path = field(metadata={"positional": True})
    repository: str = field(metadata={"positional": True})
    name: str | None = None
    public: bool = False
    dry_run: Path | None = None
    license: str = "mit"
    note: str = ""


def push(options: PushOptions) -> None:
    """Share an SAE on the Hub, with a model card and without any training text."""
    from sae_lens_maira.share import push_saes

    result = push_saes(
        options.source,
        options.repository,
        sae_id=options.name,
        public=options.public,
        dry_run_path=options.dry_run,
        license=options.license,
        note=options.note,
        metrics=_scores(options.source, options.name),
    )
    left_out = f"; left out: {', '.join(result.left_out)}" if result.left_out else ""
    sys.stdout.write(f"{result.url or options.dry_run}: {', '.join(result.files)}{left_out}\n")


def _scores(source: Path, name: str | None) -> dict[str, dict[str, float]]:
    """The scores that training wrote beside each SAE, for the model card."""
    paths = [*source.glob("scores.json"), *source.glob("*/scores.json")]
    return {
        (name or path.parent.name) if path.parent == source else path.parent.name: _read_scores(path) for path in paths
    }


def _read_scores(path: Path) -> dict[str, float]:
    try:
        values = from_json(path.read_bytes())
        if not isinstance(values, dict) or not all(type(value) in (int, float) for value in values.values()):
            raise ValueError("it holds something other than numbers by name")
    except (ValueError, OSError) as error:
        raise SaeFormatError(
            f"'{path}' is not what training wrote ({printable(error)}); move it away to share the SAE without scores."
        ) from error
    return values
