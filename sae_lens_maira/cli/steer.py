"""``sae-lens-maira steer``."""

from __future__ import annotations

import difflib
import re
import shutil
import sys
import textwrap
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sae_lens_maira.cli.arguments import Overrides, check_out
from sae_lens_maira.errors import SteeringError, printable
from sae_lens_maira.files import to_json, write_text
from sae_lens_maira.setting_values import read_yaml
from sae_lens_maira.settings import AtLeastZero, Settings
from sae_lens_maira.steering.settings import SteerConfig
from sae_lens_maira.training.config import TrainConfig

if TYPE_CHECKING:
    from sae_lens_maira.hooked.dictionary import Dictionary
    from sae_lens_maira.hooked.edits import Edit
    from sae_lens_maira.hooked.model import HookedVisionLanguageModel

_NARROWEST = 60


@dataclass(frozen=True)
class SteerOptions(Settings):
    """Options of the verb.

    Args:
        sae: the SAE's folder.
        out: the folder of the experiment's result; without it, one report is steered and shown.
        config: a YAML of the experiment, such as configs/steer_phantom.yaml.
        training: a training YAML with the model; the SAE's own by default.
        overwrite: replace another experiment in the folder.
        dry_run: say what would be done, and how long it would take.
        study: number of the study whose report is steered.
        feature: latent to edit, or several.
        dose: of each latent, in strengths; one for all, or one each.
        edit: what is done to the latents.
        lm_eval: a steering CSV of lm-evaluation-harness, instead of feature and dose.
        record: also write both reports as Neuronpedia's steer record, to this file.
        temperature: 0 takes the likeliest token; above, tokens are sampled.
    """

    GROUP = "--"
    ERROR = SteeringError

    sae: Path = field(metadata={"positional": True})
    out: Path | None = None
    config: Path | None = None
    training: Path | None = None
    overwrite: bool = False
    dry_run: bool = False
    study: AtLeastZero = 0
    feature: tuple[int, ...] = ()
    dose: tuple[float, ...] = (1.0,)
    edit: Literal["add", "clamp", "scale", "cap", "ablate"] = "add"
    lm_eval: Path | None = None
    record: Path | None = None
    temperature: float = 0.0

    def check(self) -> None:
        one = bool(self.feature) or self.lm_eval is not None
        if one and self.out is not None:
            raise SteeringError(
                "--out is for an experiment, and --feature or --lm-eval for one report; give one of them."
            )
        if not one and self.out is None:
            raise SteeringError("Give --feature and --dose to steer one report, or --out for an experiment.")
        if self.feature and len(self.dose) not in (1, len(self.feature)):
            raise SteeringError(f"There are {len(self.feature)} features and {len(self.dose)} doses; give one each.")
        if self.out is not None:
            check_out(self.out)


def steer(options: SteerOptions, settings: Overrides[SteerConfig]) -> None:
    """Steer one report and show both, or measure what latents write, over concepts and doses.

    One report: steer out/demo --feature 139 --dose 2. An experiment: steer out/demo --config configs/steer_phantom.yaml
    --out out/steering; the same command goes on after an interruption. The model is that of the SAE's training.
    """
    path = options.training or options.sae / "config.yaml"
    if not path.is_file():
        raise SteeringError(f"There is no '{path}', which says what model the SAE reads; give --training.")
    training = TrainConfig.from_dict(read_yaml(path))
    config = settings.over(options.config) if options.config else SteerConfig.from_dict(settings.values)

    from sae_lens_maira.hooked.loading import load_model
    from sae_lens_maira.sources import open_source
    from sae_lens_maira.steering.experiment import load_dictionary

    model = load_model(training.model, open_source(training.source), training.policy)
    if options.out is not None:
        _experiment(options, options.out, config, model)
        return
    dictionary, _ = load_dictionary(options.sae, model, config.n_strength, config.strength_percentile)
    _one_report(options, config, model, dictionary)


def _experiment(options: SteerOptions, out: Path, config: SteerConfig, model: HookedVisionLanguageModel) -> None:
    import tempfile

    from sae_lens_maira.steering.experiment import plan, run
    from sae_lens_maira.steering.tables import describe

    if options.dry_run:
        with tempfile.TemporaryDirectory(prefix="sae-lens-maira-steer-") as scratch:
            experiment = plan(options.sae, model, config, Path(scratch))
            counts, seconds = experiment.n_reports(), experiment.seconds_per_report()
        minutes = sum(counts.values()) * seconds / 60
        listed = ", ".join(f"{name} {n}" for name, n in counts.items())
        sys.stdout.write(
            f"At most {sum(counts.values())} reports ({listed}): about {minutes:.0f} minutes at {seconds * 1e3:.0f} ms "
            "per report.\n"
        )
        return
    result = run(plan(options.sae, model, config, out, overwrite=options.overwrite), options.sae, out)
    sys.stdout.write(describe(result.summary["figures"]) + f"\n{out}\n")


def _one_report(
    options: SteerOptions, config: SteerConfig, model: HookedVisionLanguageModel, dictionary: Dictionary
) -> None:
    from sae_lens_maira.steering.continuation import Row
    from sae_lens_maira.steering.engine import SteeringEngine
    from sae_lens_maira.steering.exchange import neuronpedia_record
    from sae_lens_maira.steering.reports import write_reports

    if options.study >= len(model.studies):
        raise SteeringError(f"There is no study {options.study}; the source has {len(model.studies)}.")
    edits = _edits(options, dictionary)
    study = model.studies[options.study]
    engine = SteeringEngine(model, {dictionary.hook_name: dictionary})
    rows = [Row(seed=config.seed), Row(tuple(edits), config.where, config.seed)]
    before, after = write_reports(
        engine, study, rows, max_new_tokens=config.max_new_tokens, temperature=options.temperature
    )
    sys.stdout.write(f"study {printable(study.study_id)}; {config.where}; {after.n_edited} positions edited\n\n")
    sys.stdout.write(side_by_side(before.text, after.text, shutil.get_terminal_size((100, 24)).columns))
    if options.record is not None:
        record = neuronpedia_record(
            study,
            edits,
            dictionary,
            model_id=Path(model.cfg.model_name).name,
            layer_id=dictionary.hook_name,
            default=before.text,
            steered=after.text,
            settings={
                "n_completion_tokens": config.max_new_tokens,
                "temperature": options.temperature,
                "seed": config.seed,
            },
        )
        write_text(options.record, to_json(record))


def _edits(options: SteerOptions, dictionary: Dictionary) -> list[Edit]:
    from sae_lens_maira.hooked.edits import Ablate, Add, Cap, Clamp, Scale
    from sae_lens_maira.steering.exchange import read_lm_eval

    if options.lm_eval is not None:
        return read_lm_eval(options.lm_eval, dictionary)
    kinds: dict[str, Any] = {"add": Add, "clamp": Clamp, "scale": Scale, "cap": Cap}
    doses = options.dose * len(options.feature) if len(options.dose) == 1 else options.dose
    if options.edit == "ablate":
        return [Ablate(feature) for feature in options.feature]
    return [kinds[options.edit](feature, dose) for feature, dose in zip(options.feature, doses, strict=True)]


def side_by_side(before: str, after: str, width: int) -> str:
    """Two reports in two columns, then the sentences that only one of them has.

    Args:
        before: the unsteered report.
        after: the steered report.
        width: of the terminal, in characters.
    """
    column = max(width, _NARROWEST) // 2 - 2
    old, new = (re.split(r"(?<=\.)\s+", printable(text).strip()) for text in (before, after))
    left, right = (
        [line for sentence in sentences for line in textwrap.wrap(sentence, column) or [""]] for sentences in (old, new)
    )
    lines = [f"{'unsteered':{column}}  | steered", f"{'-' * column}--+-{'-' * column}"]
    lines += [f"{a:{column}}  | {b}".rstrip() for a, b in zip_longest(left, right, fillvalue="")]
    marks = [line for line in difflib.ndiff(old, new) if line[0] in "+-"]
    return "\n".join([*lines, "", *(marks or ["no sentence changed"])]) + "\n"
