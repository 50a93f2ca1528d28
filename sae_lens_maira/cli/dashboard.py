"""`sae-lens-maira dashboard` makes a gallery and sae-dashboard's pages, `view` serves them on this machine."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from sae_lens_maira.dashboard.serve import DEFAULT_PORT, view


def add_dashboard(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `dashboard`."""
    verb = verbs.add_parser(
        "dashboard",
        help="make a gallery of an SAE's features, and sae-dashboard's pages",
        description="Make a gallery of an SAE's features. Any setting of the training run can be given anew, such as "
        "--source.path studies.csv.",
        allow_abbrev=False,
    )
    verb.add_argument("sae", type=Path, help="the SAE's folder")
    verb.add_argument("--out", required=True, type=Path, help="the gallery's folder; a gallery in it is replaced")
    verb.add_argument("--config", type=Path, help="a training YAML with model and studies; the SAE's own if not given")
    verb.add_argument("--cache", type=Path, help="cached activations; the model does not run then")
    verb.add_argument("--n-studies", type=int, default=2000, help="from the start of the source (default 2000)")
    verb.add_argument("--pages", default="100", help="of sae-dashboard: 100 (the strongest), all, none, or 3,17,256")
    verb.add_argument("--neuronpedia", action="store_true", help="also write Neuronpedia's files, of shareable studies")
    verb.add_argument("--sae-set", default="maira-2-sae", help="Neuronpedia's name of the set")
    verb.add_argument("--interpretations", type=Path, help="a table of feature, text, score")
    verb.add_argument("--include-private", action="store_true", help="show studies that may not leave this machine")
    verb.add_argument("--image-size", type=int, default=256, help="longer side in pixels (default 256)")
    verb.add_argument("--title", default="SAE features of MAIRA-2")
    verb.set_defaults(run=_dashboard)


def _dashboard(options: argparse.Namespace) -> None:
    from sae_lens import SAE

    from sae_lens_maira.dashboard.make import DashboardSettings, check_replaceable, make_dashboards
    from sae_lens_maira.dashboard.origin import Origin
    from sae_lens_maira.errors import DashboardError
    from sae_lens_maira.features.interpretations import read_interpretations
    from sae_lens_maira.training.config import load_config
    from sae_lens_maira.training.run import load_model, load_studies

    settings = DashboardSettings(
        title=options.title,
        pages=options.pages,
        neuronpedia=options.neuronpedia,
        sae_set=options.sae_set,
        include_private=options.include_private,
        n_studies=options.n_studies,
        image_size=options.image_size,
    )
    check_replaceable(options.out)
    if not (options.sae / "cfg.json").is_file():
        raise DashboardError(f"There is no SAE in '{options.sae}'; give the folder that training wrote.")
    config_path = options.config or options.sae / "config.yaml"
    if not config_path.is_file():
        raise DashboardError(f"There is no '{config_path}', so model and studies are unknown; give --config.")
    config = load_config(config_path, options.overrides)
    sae = SAE.load_from_disk(options.sae)
    cache = None
    if options.cache is not None:
        from sae_lens_maira.activations import ActivationCache

        cache = ActivationCache.open(options.cache)
    interpretations = read_interpretations(options.interpretations, sae.cfg.d_sae) if options.interpretations else []
    origin = Origin(
        str(options.sae), config.to_dict(), asdict(settings), str(options.cache) if options.cache is not None else None
    )
    model = load_model(config, load_studies(config.source))
    result = make_dashboards(
        sae, model, options.out, settings, cache=cache, interpretations=interpretations, origin=origin
    )
    sys.stdout.write(result.describe() + "\n")


def add_view(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `view`."""
    verb = verbs.add_parser("view", help="serve a gallery on this machine and open the browser")
    verb.add_argument("folder", type=Path, help="the gallery's folder")
    verb.add_argument("--port", type=int, default=DEFAULT_PORT, help=f"default {DEFAULT_PORT}; 0 for any that is free")
    verb.add_argument("--no-browser", action="store_true", help="do not open the browser")
    verb.set_defaults(run=_view)


def _view(options: argparse.Namespace) -> None:
    view(options.folder, options.port, open_browser=not options.no_browser)
