"""``sae-lens-maira attribute``."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_lens_maira.attribution.settings import AttributionConfig
from sae_lens_maira.cli.arguments import Overrides, check_out
from sae_lens_maira.errors import AttributionError
from sae_lens_maira.settings import Settings
from sae_lens_maira.training.config import TrainConfig


@dataclass(frozen=True)
class AttributeOptions(Settings):
    """Options of the verb.

    Args:
        sae: the SAE's folder.
        out: the folder of the result.
        config: a YAML of the attribution, such as configs/attribute_phantom.yaml.
        training: a training YAML with model and studies; the SAE's own by default.
        overwrite: replace another run's parts in the folder.
        dry_run: say what would be done.
    """

    GROUP = "--"
    ERROR = AttributionError

    sae: Path = field(metadata={"positional": True})
    out: Path
    config: Path | None = None
    training: Path | None = None
    overwrite: bool = False
    dry_run: bool = False

    def check(self) -> None:
        check_out(self.out)


def attribute(
    options: AttributeOptions, settings: Overrides[AttributionConfig], training: Overrides[TrainConfig]
) -> None:
    """Measure what drives an SAE's features: image, prior, request or the report's own words; and where they look.

    The same command goes on after an interruption. Model and studies are those of the SAE's training, and any of its
    settings can be overridden here: --source.seed 100.
    """
    path = options.training or options.sae / "config.yaml"
    for needed in (options.sae / "cfg.json", path):
        if not needed.is_file():
            raise AttributionError(f"There is no '{needed}'; give the folder that training wrote, or --training.")
    own = settings.over(options.config) if options.config else AttributionConfig.from_dict(settings.values)
    config = training.over(path)

    from sae_lens import SAE

    from sae_lens_maira.attribution.plan import describe_plan, usable_studies
    from sae_lens_maira.attribution.run import attribute as run
    from sae_lens_maira.hooked.loading import load_model
    from sae_lens_maira.sources import open_source

    model = load_model(config.model, open_source(config.source), config.policy)
    if options.dry_run:
        sys.stdout.write(describe_plan(usable_studies(model, own), own) + "\n")
        return
    sae = SAE.load_from_disk(options.sae, device=str(model.cfg.device))
    result = run(sae, model, options.out, own, overwrite=options.overwrite)
    sys.stdout.write(describe(result.summary) + f"\n{options.out}\n")


def describe(summary: dict[str, Any]) -> str:
    """The main figures as a table."""
    lines: list[str] = []
    for swap, found in summary["drivers"].items():
        lines += [f"sources swapped: {swap}", f"  {'driven by':<34}image  prior   text report   none"]
        for who in ("features", "random directions"):
            for place, counts in found[who].items():
                numbers = "".join(f"{count:>7}" for count in counts.values())
                lines.append(f"  {f'{who}, {place}':<32}{numbers}")
        for name, figure in found["carriers"].items():
            if isinstance(figure, dict) and figure["n"]:
                value, low, high = figure["right"]
                lines.append(
                    f"  right: {figure['n_right']} of {figure['n']} {name} ({value:.3f} [{low:.3f}, {high:.3f}])"
                )
    maps = summary["maps"]
    if maps["methods"]:
        lines.append(f"  {'map':<22}deletion  labels better  pointing  energy/share  agreement")
        for method, found in maps["methods"].items():
            if "deletion" in found:
                better, n_labels = found["labels_better_than_controls"]
                winner = " (winner)" if method == maps["winner"] else ""
                lines.append(
                    f"  {method:<22}{_text(found['deletion']):>8}{f'{better} of {n_labels}':>15}"
                    f"{_text(found['pointing']):>10}{_text(found['energy_over_share']):>14}"
                    f"{_text(found['agreement']):>11}{winner}"
                )
    if summary["next_tokens"]["agreement"] is not None:
        lines.append(f"  next tokens: estimate and exact effect correlate {summary['next_tokens']['agreement']:.3f}")
    return "\n".join(lines)


def _text(interval: list[float | None]) -> str:
    return "-" if interval[0] is None else f"{interval[0]:.2f}"
