"""The playground in ``view``: choose study, latent and dose, and see both reports.

It is served where pages are made on demand, to this machine only, and under the same rules: texts of a study that may
not be shown never leave it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens_maira.dashboard.data_files import INDEX, read
from sae_lens_maira.dashboard.origin import Origin
from sae_lens_maira.errors import SteeringError

if TYPE_CHECKING:
    from sae_lens_maira.steering.engine import SteeringEngine

FILES = {"/playground.html": "text/html", "/playground.js": "text/javascript"}
STEER = "/playground/steer"
_STATIC = Path(__file__).parent / "playground_page"
_LARGEST_DOSE = 100.0


class Playground:
    """Steers reports of a gallery's studies, one at a time. The first one loads the model.

    Args:
        folder: the gallery's folder.
        origin: what the gallery was made from.
    """

    def __init__(self, folder: Path, origin: Origin) -> None:
        self._folder, self._origin = folder, origin
        self._engine: SteeringEngine | None = None

    def steer(self, query: Mapping[str, list[str]]) -> dict[str, Any]:
        """Both reports of a study.

        Args:
            query: ``study``, ``feature``, ``dose`` and ``edit`` (add, clamp or ablate).

        Raises:
            UserError: something in the query is wrong, or the study may not be shown.
        """
        from sae_lens_maira.hooked.edits import Ablate, Add, Clamp
        from sae_lens_maira.steering.continuation import Row
        from sae_lens_maira.steering.reports import write_reports
        from sae_lens_maira.steering.settings import SteerConfig

        feature, study_index = _whole(query, "feature"), _whole(query, "study")
        dose, name = _number(query, "dose"), (query.get("edit") or ["add"])[0]
        with self._origin.lock:
            self._engine = self._engine or self._load()
            engine = self._engine
            studies = engine.model.studies
            if study_index >= len(studies):
                raise SteeringError(f"There is no study {study_index}; the gallery has {len(studies)}.")
            study = studies[study_index]
            if not study.shareable and not read(self._folder / INDEX)["banner"]:
                raise SteeringError("This study may not be shown, so its reports are not either.")
            match name:
                case "add":
                    edit = Add(feature, dose)
                case "clamp":
                    edit = Clamp(feature, dose)
                case "ablate":
                    edit = Ablate(feature)
                case _:
                    raise SteeringError("The edit is unknown; choose add, clamp or ablate.")
            before, after = write_reports(
                engine, study, [Row(), Row((edit,))], max_new_tokens=SteerConfig.max_new_tokens
            )
        return {"before": before.text, "after": after.text, "n_edited": after.n_edited, "ending": after.ending}

    def _load(self) -> SteeringEngine:
        from sae_lens_maira.steering.engine import SteeringEngine
        from sae_lens_maira.steering.experiment import load_dictionary
        from sae_lens_maira.steering.settings import SteerConfig

        model, config = self._origin.model, SteerConfig()
        dictionary, _ = load_dictionary(Path(self._origin.sae), model, config.n_strength, config.strength_percentile)
        return SteeringEngine(model, {dictionary.hook_name: dictionary})


def static_file(path: str) -> str:
    """The text of one of the playground's own files."""
    return (_STATIC / path[1:]).read_text(encoding="utf-8")


def _whole(query: Mapping[str, list[str]], name: str) -> int:
    text = (query.get(name) or [""])[0]
    if not re.fullmatch(r"\d{1,9}", text):
        raise SteeringError(f"Give {name} as a whole number.")
    return int(text)


def _number(query: Mapping[str, list[str]], name: str) -> float:
    text = (query.get(name) or ["1"])[0]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= _LARGEST_DOSE:
        raise SteeringError(f"Give {name} as a number from {-_LARGEST_DOSE:g} to {_LARGEST_DOSE:g}.")
    return value
