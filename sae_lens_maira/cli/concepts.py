"""``sae-lens-maira concepts``."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens_maira.cli.arguments import Overrides, check_out, check_sae_folder
from sae_lens_maira.concepts.config import ConceptConfig, scored_studies
from sae_lens_maira.errors import ConfigError
from sae_lens_maira.setting_values import read_yaml
from sae_lens_maira.settings import Settings, overlay
from sae_lens_maira.training.config import TrainConfig

if TYPE_CHECKING:
    from sae_lens_maira.data.source import StudySource

_TAKEN = ("model", "source", "policy")


@dataclass(frozen=True)
class ConceptOptions(Settings):
    """Options of the verb.

    Args:
        sae: the SAE's folder.
        out: the folder of the results.
        config: a YAML such as configs/concepts_phantom.yaml; model, studies and tokens are the SAE's own without it.
        cache: cached activations to read instead of running the model; its token policy is taken.
        dry_run: say what would be asked of how many studies, and stop.
        overwrite: drop the unfinished or finished results of other settings in the folder.
    """

    GROUP = "--"

    sae: Path = field(metadata={"positional": True})
    out: Path
    config: Path | None = None
    cache: Path | None = None
    dry_run: bool = False
    overwrite: bool = False

    def check(self) -> None:
        check_out(self.out)


def concepts(options: ConceptOptions, settings: Overrides[ConceptConfig]) -> None:
    """Compare an SAE's latents with the labels of studies, beside controls that are chosen by the same rule.

    Studies that the SAE was trained on are left out. Running the command again after an interruption goes on with what
    is missing.
    """
    trained = _trained(options.sae)
    config = _read_config(options, trained, settings)

    from sae_lens_maira.sources import open_source

    source = open_source(config.source)
    scored = scored_studies(config, None if trained is None else trained.source, len(source))
    if not scored:
        raise ConfigError(
            f"The SAE was trained on all {len(source)} studies; give source.n_held_out as in its training, or another "
            "source."
        )
    if options.dry_run:
        sys.stdout.write(_plan(source, scored, config) + "\n")
        return

    from sae_lens import SAE

    from sae_lens_maira.activations.read import ActivationCache
    from sae_lens_maira.concepts.run import ConceptRun
    from sae_lens_maira.hooked.loading import load_model

    sae = SAE.load_from_disk(options.sae)
    cache = None if options.cache is None else ActivationCache.open(options.cache)
    model = load_model(config.model, source, config.policy)
    run = ConceptRun(sae, options.sae, model, config, scored, cache)
    result = run.write(options.out, overwrite=options.overwrite)
    sys.stdout.write(f"{result.summary['text']}\n\n{options.out}: {', '.join(result.summary['files'])}\n")


def _trained(sae: Path) -> TrainConfig | None:
    """The configuration of the SAE's training, if its folder has it; the SAE itself must be there."""
    check_sae_folder(sae, ConfigError)
    for folder in (sae, sae.parent):
        if (folder / "config.yaml").is_file():
            return TrainConfig.from_dict(read_yaml(folder / "config.yaml"))
    return None


def _read_config(
    options: ConceptOptions, trained: TrainConfig | None, settings: Overrides[ConceptConfig]
) -> ConceptConfig:
    """The command line over --config over the cache's token policy over the SAE's own configuration."""
    if trained is None and options.config is None:
        raise ConfigError(
            f"'{options.sae}' has no config.yaml, so model and studies are unknown; give --config, as in "
            "configs/concepts_phantom.yaml."
        )
    values: dict[str, Any] = {}
    if trained is not None:
        values = {name: value for name, value in trained.to_dict().items() if name in _TAKEN}
    if options.config is not None:
        values = overlay(values, read_yaml(options.config))
    if options.cache is not None:
        from sae_lens_maira.activations.header import read_header

        values = overlay(values, {"policy": read_header(options.cache)["identity"]["token_policy"]})
    return ConceptConfig.from_dict(overlay(values, settings.values))


def _plan(source: StudySource, scored: range, config: ConceptConfig) -> str:
    """What a run would do, from the labels alone."""
    from sae_lens_maira.concepts.plan import describe_plan

    return describe_plan([source[index] for index in scored], scored.start, config.concepts)
