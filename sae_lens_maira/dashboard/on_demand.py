"""Makes a feature's missing standard page while the gallery is being viewed."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from sae_lens_maira.dashboard.data_files import INDEX, put, read
from sae_lens_maira.dashboard.make import subject_of
from sae_lens_maira.dashboard.origin import Origin
from sae_lens_maira.dashboard.settings import DashboardSettings
from sae_lens_maira.dashboard.standard.pages import page_name, write_pages
from sae_lens_maira.features.subject import Subject


class PageMaker:
    """Writes pages into a gallery's folder, one at a time. The first one loads the model and the activations.

    Args:
        folder: the gallery's folder.
        origin: what the gallery was made from.
    """

    def __init__(self, folder: Path, origin: Origin) -> None:
        self._folder, self._origin = folder, origin
        self._subject: Subject | None = None
        self._scratch = tempfile.TemporaryDirectory(prefix="sae-lens-maira-view-")

    def close(self) -> None:
        """Remove the recording."""
        self._scratch.cleanup()

    def page(self, feature: int) -> Path:
        """The page of a feature, made if it is missing.

        Raises:
            LookupError: there is no such feature.
            ValueError: SAE, model, cache or studies no longer fit together.
            OSError: they cannot be read.
            ImportError: sae-dashboard is not installed.
        """
        with self._origin.lock:
            path = self._folder / "pages" / page_name(feature)
            if path.is_file():
                return path
            index = read(self._folder / INDEX)
            if not 0 <= feature < index["nFeatures"]:
                raise LookupError(f"There is no feature {feature}.")
            part, place = divmod(feature, index["featuresPerFile"])
            details = read(self._folder / "data" / "features" / f"{part}.js")[place]
            self._subject = self._subject or self._load()
            among = [other for other, *_ in details["together"]]
            banner = index["banner"] or index["note"]
            write_pages(self._subject, [feature], path.parent, banner=banner, among=among, show_progress=False)
            put(self._folder / INDEX, "index", {**index, "pages": sorted([*index["pages"], feature])})
            return path

    def _load(self) -> Subject:
        from sae_lens import SAE

        from sae_lens_maira.hooked.identity import check_sae_fits

        sae, model = SAE.load_from_disk(self._origin.sae), self._origin.model
        settings = DashboardSettings.from_dict(self._origin.settings)
        check_sae_fits(sae, model)
        cache = None
        if self._origin.cache is not None:
            from sae_lens_maira.activations import ActivationCache

            cache = ActivationCache.open(Path(self._origin.cache))
        studies = model.studies[: settings.n_studies]
        subject = subject_of(sae, model, studies, Path(self._scratch.name), settings, cache)
        # The gallery's own banner decides: private text appears under no other.
        if settings.include_private and read(self._folder / INDEX)["banner"]:
            return subject
        shareable = np.array([studies[index].shareable for index in subject.recording.studies])
        return Subject(sae, model, subject.recording.only(shareable))
