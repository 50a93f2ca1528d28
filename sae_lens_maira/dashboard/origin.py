"""What a gallery was made from, so that ``view`` can make further pages: ``.dashboard.json`` in its folder.

It names local paths and is not served. Delete it before the folder is shared, or leave it out from the start with
``sae-lens-maira dashboard --public``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from sae_lens_maira.errors import ViewError
from sae_lens_maira.files import write_text

ORIGIN = ".dashboard.json"


@dataclass(frozen=True)
class Origin:
    """The arguments of ``sae-lens-maira dashboard``.

    Args:
        sae: the SAE's folder, an absolute path.
        config: the training run's YAML, with the model and the studies.
        settings: what the gallery shows.
        cache: the folder of cached activations; None if the model ran.
    """

    sae: str
    config: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    cache: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether the model can be loaded without asking the Hub."""
        model = self.config.get("model")
        name = model.get("name") if isinstance(model, dict) else None
        return isinstance(name, str) and (name == "phantom" or Path(name).expanduser().is_dir())

    def write(self, folder: Path) -> None:
        """Keep this beside a gallery."""
        write_text(folder / ORIGIN, json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, folder: Path) -> Origin | None:
        """What a gallery was made from; None if it does not say.

        Raises:
            ViewError: the file is not one of ours.
        """
        path = folder / ORIGIN
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            unknown = set(values) - {entry.name for entry in fields(cls)}
        except (ValueError, TypeError, RecursionError) as error:
            raise ViewError(f"'{path}' cannot be read ({error}); delete it.") from error
        if unknown or "sae" not in values:
            raise ViewError(f"'{path}' was written by another version; delete it, or make the gallery again.")
        found = cls(**values)
        is_typed = (
            isinstance(found.sae, str)
            and isinstance(found.config, dict)
            and isinstance(found.settings, dict)
            and (found.cache is None or isinstance(found.cache, str))
        )
        if not is_typed or "\0" in f"{found.sae}{found.cache}":
            raise ViewError(f"'{path}' holds values of other types than were written; delete it.")
        return found
