"""``sae-lens-maira dashboard``."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from sae_lens_maira.cli.arguments import Overrides, check_out, check_sae_folder
from sae_lens_maira.dashboard.settings import DashboardSettings
from sae_lens_maira.errors import DashboardError
from sae_lens_maira.settings import Settings
from sae_lens_maira.training.config import TrainConfig


@dataclass(frozen=True)
class DashboardOptions(Settings):
    """Options of the verb.

    Args:
        sae: the SAE's folder.
        out: the gallery's folder; a gallery in it is replaced.
        config: a training YAML with model and studies; the SAE's own by default.
        cache: cached activations to read instead of running the model.
        interpretations: a table of feature, text, score; by default the explanations among the results.
        results: folders that concepts, interpret, attribute and steer wrote about this SAE.
        public: keep nothing beside the gallery that lets view make further pages; that file names local paths.
    """

    GROUP = "--"

    sae: Path = field(metadata={"positional": True})
    out: Path
    config: Path | None = None
    cache: Path | None = None
    interpretations: Path | None = None
    results: tuple[Path, ...] = ()
    public: bool = False

    def check(self) -> None:
        check_out(self.out)


def dashboard(options: DashboardOptions, settings: DashboardSettings, training: Overrides[TrainConfig]) -> None:
    """Make a gallery of an SAE's features, and sae-dashboard's pages.

    By default, model and studies are those of the SAE's training. Any setting of the training can be overridden here:
    --source.path studies.csv.
    """
    config_path = options.config or options.sae / "config.yaml"
    _check_folders(options, config_path)
    settings.check_packages()
    config = training.over(config_path)

    from sae_lens import SAE

    from sae_lens_maira.activations.read import ActivationCache
    from sae_lens_maira.dashboard.make import make_dashboards
    from sae_lens_maira.dashboard.origin import Origin
    from sae_lens_maira.dashboard.shown_results import read_results
    from sae_lens_maira.features.interpretations import read_interpretations
    from sae_lens_maira.hooked.loading import load_model
    from sae_lens_maira.sources import open_source

    sae = SAE.load_from_disk(options.sae)
    results = read_results(options.results, sae)
    cache = None if options.cache is None else ActivationCache.open(options.cache)
    interpretations = read_interpretations(options.interpretations, sae.cfg.d_sae) if options.interpretations else []
    cache_path = None if options.cache is None else str(options.cache.resolve())
    origin = Origin(str(options.sae.resolve()), config.to_dict(), settings.to_dict(), cache_path)
    model = load_model(config.model, open_source(config.source), config.policy)
    result = make_dashboards(
        sae,
        model,
        options.out,
        settings,
        cache=cache,
        interpretations=interpretations,
        results=results,
        origin=None if options.public else origin,
    )
    sys.stdout.write(result.describe() + "\n")


def _check_folders(options: DashboardOptions, config_path: Path) -> None:
    """Refuse what is missing before anything large is loaded."""
    from sae_lens_maira.dashboard.own_folder import check_replaceable

    check_replaceable(options.out)
    check_sae_folder(options.sae, DashboardError)
    if not config_path.is_file():
        raise DashboardError(f"There is no '{config_path}', so model and studies are unknown; give --config.")
