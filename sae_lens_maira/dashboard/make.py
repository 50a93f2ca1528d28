"""From an SAE and a model to a gallery with standard pages.

1. Activations of the chosen studies come from a cache, or from one run of the model.
2. The SAE runs once on them; everything else is computed from the features that fire.
3. Gallery, standard pages and Neuronpedia's files are written to a new folder, which then replaces the final one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL.Image import Image

from sae_lens_maira.activations.header import check_cache_fits
from sae_lens_maira.activations.live import LiveActivations, StudyProgress
from sae_lens_maira.dashboard.gallery import GalleryText, write_features, write_index, write_static, write_studies
from sae_lens_maira.dashboard.images import ImageWriter
from sae_lens_maira.dashboard.origin import Origin, origin_path
from sae_lens_maira.dashboard.own_folder import check_replaceable, mark_gallery
from sae_lens_maira.dashboard.settings import DashboardSettings
from sae_lens_maira.dashboard.shown_results import explanations, write_results
from sae_lens_maira.dashboard.standard.neuronpedia import write_neuronpedia
from sae_lens_maira.dashboard.standard.pages import write_pages
from sae_lens_maira.data.study import Study, View
from sae_lens_maira.errors import DashboardError
from sae_lens_maira.features.interpretations import Interpretation
from sae_lens_maira.features.recording import Recording, record
from sae_lens_maira.features.subject import Subject
from sae_lens_maira.features.table import compute_table
from sae_lens_maira.files import replace_folder, unfinished_folder
from sae_lens_maira.hooked import HookedVisionLanguageModel
from sae_lens_maira.hooked.identity import check_sae_fits, public_model_name
from sae_lens_maira.results import Result

if TYPE_CHECKING:
    from sae_lens_maira.activations import ActivationCache

logger = logging.getLogger(__name__)

_N_DECODERS = 1
"""Threads that open images for the model and write them; more gain little, as this work holds Python's global lock."""


@dataclass(frozen=True)
class DashboardResult:
    """What was made.

    Args:
        path: the gallery's folder; open ``index.html`` in it.
        n_features: features in the gallery.
        n_studies: studies in the gallery.
        n_private: studies that count in the statistics but are not shown.
        pages: features that have sae-dashboard's page.
        neuronpedia: files to upload.
    """

    path: Path
    n_features: int
    n_studies: int
    n_private: int
    pages: list[int] = field(default_factory=list)
    neuronpedia: list[Path] = field(default_factory=list)

    def describe(self) -> str:
        """One line for people."""
        hidden = f", {self.n_private} private studies not shown" if self.n_private else ""
        uploads = f", {len(self.neuronpedia)} files for Neuronpedia" if self.neuronpedia else ""
        return (
            f"{self.n_features} features, {self.n_studies} studies{hidden}, {len(self.pages)} sae-dashboard pages"
            f"{uploads}; open {self.path / 'index.html'}"
        )


@dataclass(frozen=True)
class _Request:
    """The arguments of :func:`make_dashboards`."""

    sae: Any
    model: HookedVisionLanguageModel
    settings: DashboardSettings
    cache: ActivationCache | None
    interpretations: Sequence[Interpretation]
    results: Sequence[Result]
    show_progress: bool


def make_dashboards(
    sae: Any,
    model: HookedVisionLanguageModel,
    path: Path,
    settings: DashboardSettings | None = None,
    *,
    cache: ActivationCache | None = None,
    interpretations: Sequence[Interpretation] = (),
    results: Sequence[Result] = (),
    origin: Origin | None = None,
    show_progress: bool = True,
) -> DashboardResult:
    """Make the gallery of an SAE, sae-dashboard's pages of some features, and Neuronpedia's files.

    Args:
        sae: an SAE as SAE-Lens loads it; it is not changed.
        model: the model that the SAE was trained on, bound to the studies to show.
        path: the gallery's folder; an existing gallery there is replaced.
        settings: what to make.
        cache: activations of the model's studies, read instead of running the model.
        interpretations: interpretations of features; by default those of ``results``.
        results: what the other verbs found out about the features, as
            :func:`~sae_lens_maira.dashboard.shown_results.read_results` opens it.
        origin: what ``sae-lens-maira view`` needs to make further pages.
        show_progress: whether to show progress bars.

    Raises:
        DashboardError: the folder holds something else, or there is nothing to show.
        SaeMismatch: the SAE belongs to another model.
        MissingPackageError: sae-dashboard is not installed.
        Interrupted: Ctrl-C while the model ran; nothing is left of the new gallery.
    """
    request = _Request(sae, model, settings or DashboardSettings(), cache, interpretations, results, show_progress)
    request.settings.check_packages()
    check_replaceable(path)
    check_sae_fits(sae, model)
    with unfinished_folder(path, DashboardError) as folder:
        scratch, made = folder / "scratch", folder / "gallery"
        made.mkdir()
        result = _make(request, path, scratch, made)
        mark_gallery(made, None if origin is None else origin.gallery_id)
        check_replaceable(path)
        replace_folder(made, path)
        if origin is None:
            origin_path(path).unlink(missing_ok=True)
        else:
            origin.write(path)
    return result


def subject_of(
    sae: Any,
    model: HookedVisionLanguageModel,
    studies: Sequence[Study],
    scratch: Path,
    settings: DashboardSettings,
    cache: ActivationCache | None = None,
    images: ImageWriter | None = None,
    show_progress: bool = True,
) -> Subject:
    """Record studies, from a cache or with one run of the model.

    Args:
        sae, model: as for :func:`make_dashboards`.
        studies: the first of the model's studies, as a list, because making them may take long.
        scratch: a folder for the recording.
        settings: decides which studies are shown.
        cache: activations of the model's studies.
        images: writes the images of the studies that may be shown, as they are opened for the model.
        show_progress: whether to show a progress bar.

    Raises:
        DashboardError: the SAE's metadata has no hook point.
        CacheError: the cache does not fit the model or its studies, or lacks that hook point.
    """
    hook_name = sae.cfg.metadata.hook_name
    if not hook_name:
        raise DashboardError("The SAE's metadata has no hook_name, so its hook point is unknown.")
    shown = [settings.shows(study) for study in studies]
    if cache is not None:
        check_cache_fits(cache.path, cache.identity, model)
        for index, study in enumerate(studies):
            if images is not None and shown[index]:
                images.add(index, study)
        return Subject(sae, model, Recording(cache.blocks(hook_name), hook_name, len(studies)))

    def write_images(index: int, opened: Mapping[View, Image]) -> None:
        if images is not None and shown[index]:
            images.add_opened(index, opened)

    stream = LiveActivations(
        model,
        [hook_name],
        studies=studies,
        context_size=sae.cfg.metadata.context_size,
        max_batch_tokens=settings.max_batch_tokens,
        workers=_N_DECODERS,
        observer=write_images,
        progress=StudyProgress(shown=show_progress),
    )
    return Subject(sae, model, record(stream, hook_name, scratch / "recording"))


def _make(request: _Request, path: Path, scratch: Path, made: Path) -> DashboardResult:
    """Make everything in a temporary folder."""
    sae, model, settings, show_progress = request.sae, request.model, request.settings, request.show_progress
    studies = model.studies[: settings.n_studies]
    with ImageWriter(made, settings.image_size) as images:
        subject = subject_of(sae, model, studies, scratch, settings, request.cache, images, show_progress)
        recording = subject.recording
        own = [studies[index] for index in recording.studies]
        shareable = np.array([study.shareable for study in own])
        shown = shareable | settings.include_private
        named = {name for study, is_shown in zip(own, shown, strict=True) if is_shown for name in study.labels}
        labels = [{name: label for name, label in study.labels.items() if name in named} for study in own]
        table = compute_table(
            subject, labels, shown, scratch, n_examples=settings.n_examples, show_progress=show_progress
        )
        write_static(made)
        text = gallery_text(settings, subject, shareable)
        pages = settings.page_list(table.n_features, table.strongest_features(table.n_features)) if shown.any() else []
        meanings = request.interpretations or explanations(request.results)
        write_index(made, subject, table, text, pages, meanings, shown)
        write_results(made, request.results, table.n_features)
        write_features(made, subject, table, show_progress=show_progress)
        write_studies(made, subject, table, studies, images, shown, show_progress=show_progress)
    if pages:
        shown_subject = Subject(sae, model, recording.only(shown))
        write_pages(shown_subject, pages, made / "pages", banner=page_banner(text), show_progress=show_progress)
    uploads = _neuronpedia(subject, settings, pages, shareable, made, show_progress) if settings.neuronpedia else []
    return DashboardResult(
        path=path,
        n_features=table.n_features,
        n_studies=int(shown.sum()),
        n_private=int((~shown).sum()),
        pages=pages,
        neuronpedia=[path / "neuronpedia" / file.name for file in uploads],
    )


def gallery_text(settings: DashboardSettings, subject: Subject, shareable: np.ndarray) -> GalleryText:
    """The gallery's texts: what it shows, what it leaves out, and what may not leave the machine."""
    n_private = int((~shareable).sum())
    metadata = subject.sae.cfg.metadata
    facts = {
        "Model": public_model_name(str(metadata.model_name or subject.model.cfg.model_name)),
        "Read at": subject.hook_name,
        "SAE": f"{metadata.get('training_architecture') or subject.sae.cfg.architecture()}, "
        f"{subject.sae.cfg.d_sae} features of {subject.sae.cfg.d_in} dimensions",
        "Shown": f"{subject.recording.n_tokens:,} tokens of {subject.recording.n_studies:,} studies",
    }
    banner = note = ""
    if n_private and settings.include_private:
        banner = f"Private: {n_private} studies shown here may not leave this machine. Do not share these pages."
    elif n_private:
        note = (
            f"{n_private} of {len(shareable)} studies are private: they count in the numbers, and their text and "
            "images are left out. Standard pages are made from the other studies alone."
        )
    return GalleryText(settings.title, facts, banner, note)


def page_banner(text: GalleryText) -> str:
    """The line above sae-dashboard's pages."""
    return text.banner or text.note


def _neuronpedia(
    subject: Subject,
    settings: DashboardSettings,
    features: Sequence[int],
    shareable: np.ndarray,
    made: Path,
    show_progress: bool,
) -> list[Path]:
    """Write Neuronpedia's files from shareable studies only, whatever the gallery shows."""
    if not shareable.any() or not features:
        lacking = "No feature fires" if shareable.any() else "No study is shareable"
        logger.warning("%s, so nothing was written for Neuronpedia.", lacking)
        return []
    public = Subject(subject.sae, subject.model, subject.recording.only(shareable))
    dataset = subject.sae.cfg.metadata.get("dataset_path") or ""
    return write_neuronpedia(
        public,
        features,
        made / "neuronpedia",
        sae_set=settings.sae_set,
        model_id=public_model_name(str(subject.model.cfg.model_name)),
        dataset=str(dataset),
        show_progress=show_progress,
    )
