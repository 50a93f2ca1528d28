"""``sae-lens-maira view``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le

from sae_lens_maira.dashboard.serve import DEFAULT_PORT
from sae_lens_maira.settings import Settings


@dataclass(frozen=True)
class ViewOptions(Settings):
    """Options of the verb.

    Args:
        folder: the gallery's folder.
        port: the port to serve on; 0 for any free one.
        no_browser: do not open the browser.
        allow_download: let further pages load the model from the Hub, if it is not on this disk.
    """

    GROUP = "--"

    folder: Path = field(metadata={"positional": True})
    port: Annotated[int, Ge(0), Le(65535)] = DEFAULT_PORT
    no_browser: bool = False
    allow_download: bool = False


def view(options: ViewOptions) -> None:
    """Serve a gallery on this machine and open the browser."""
    from sae_lens_maira.dashboard.serve import view

    view(
        options.folder,
        options.port,
        open_browser=not options.no_browser,
        allow_download=options.allow_download,
    )
