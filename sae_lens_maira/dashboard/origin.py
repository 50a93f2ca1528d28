"""What a gallery was made from, so that ``view`` can make further pages: ``.gallery.origin.json`` beside ``gallery/``.

It names local paths and decides what ``view`` loads, so it lies outside the folder: a gallery that is copied, packed or
published leaves it behind, and one that comes from elsewhere brings none. The gallery's mark and this file carry the
same id, so that neither is taken for another one's.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens_maira.errors import ViewError
from sae_lens_maira.files import from_json, to_json, write_text

if TYPE_CHECKING:
    from sae_lens_maira.hooked import HookedVisionLanguageModel

logger = logging.getLogger(__name__)


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

    @property
    def gallery_id(self) -> str:
        """Connects this with its gallery."""
        return hashlib.sha256(to_json(asdict(self)).encode()).hexdigest()[:16]

    @cached_property
    def lock(self) -> threading.Lock:
        """Held while :attr:`model` is loaded or run, since edits for one request must not reach another."""
        return threading.Lock()

    @cached_property
    def model(self) -> HookedVisionLanguageModel:
        """The model of the training, bound to its studies; loaded once, for whoever asks first."""
        from sae_lens_maira.hooked.loading import load_model
        from sae_lens_maira.sources import open_source
        from sae_lens_maira.training.config import TrainConfig

        logger.info("Loading '%s' and its model.", self.sae)
        config = TrainConfig.from_dict(self.config)
        return load_model(config.model, open_source(config.source), config.policy)

    def write(self, folder: Path) -> None:
        """Keep this beside a gallery."""
        write_text(origin_path(folder), to_json({**asdict(self), "gallery_id": self.gallery_id}))

    @classmethod
    def read(cls, folder: Path, gallery_id: str | None) -> Origin | None:
        """What a gallery was made from; None if that is not known here.

        Args:
            folder: the gallery's folder.
            gallery_id: as its mark gives it.

        Raises:
            ViewError: the file is not one of ours.
        """
        path = origin_path(folder)
        if not path.is_file():
            return None
        try:
            values = dict(from_json(path.read_bytes()))
            if values.pop("gallery_id", None) != gallery_id:
                return None
            unknown = set(values) - {entry.name for entry in fields(cls)}
        except (ValueError, TypeError) as error:
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


def origin_path(folder: Path) -> Path:
    """Where a gallery's origin is kept."""
    place = folder.absolute()
    return place.parent / f".{place.name}.origin.json"
