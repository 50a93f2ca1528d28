"""Opening a source of studies: the only place that knows all kinds."""

from __future__ import annotations

from pathlib import Path

from typing_extensions import assert_never

from sae_lens_maira.data.source import (
    FirstStudies,
    ManifestConfig,
    MimicCxrConfig,
    OpeniConfig,
    PhantomConfig,
    SourceConfig,
    StudySource,
)
from sae_lens_maira.errors import SourceError


def open_source(config: SourceConfig) -> StudySource:
    """Open the source that a configuration names. No image is opened.

    Raises:
        SourceError: it is missing or malformed, or holds no study that can be used.
    """
    source = _open(config)
    if not len(source):
        reasons = ", ".join(f"{reason} ({count})" for reason, count in source.unusable.most_common())
        hint = "; give source.images, or missing_images: phantom" if "no frontal image" in source.unusable else ""
        raise SourceError(
            f"The source {config.kind} holds no study that can be used: {reasons or 'it is empty'}{hint}."
        )
    return source if config.n_studies is None else FirstStudies(source, config.n_studies)


def _open(config: SourceConfig) -> StudySource:
    match config:
        case PhantomConfig():
            from sae_lens_maira.phantom.source import PhantomSource

            return PhantomSource(config.n_studies, config.seed)
        case ManifestConfig():
            from sae_lens_maira.data.manifest import ManifestSource

            return ManifestSource(Path(config.path))
        case OpeniConfig():
            from sae_lens_maira.data.openi import OpeniSource

            if config.missing_images == "skip":
                return OpeniSource(config)
            from sae_lens_maira.phantom.mesh import PhantomDrawer

            return OpeniSource(config, PhantomDrawer())
        case MimicCxrConfig():
            from sae_lens_maira.data.mimic_cxr import MimicCxrSource

            return MimicCxrSource(config)
        case _:
            assert_never(config)
