"""``sae-lens-maira interpret``."""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens_maira.cli.arguments import Overrides, check_out, check_sae_folder
from sae_lens_maira.errors import InterpretError
from sae_lens_maira.interpret.settings import InterpretSettings
from sae_lens_maira.settings import Settings
from sae_lens_maira.training.config import TrainConfig

if TYPE_CHECKING:
    from sae_lens_maira.interpret.evidence import Evidence
    from sae_lens_maira.interpret.run import Findings, Models

logger = logging.getLogger(__name__)

_N_PRINTED = 10


@dataclass(frozen=True)
class InterpretOptions(Settings):
    """Options of the verb.

    Args:
        sae: the SAE's folder.
        out: the result's folder; an earlier result in it is replaced, its answers are used again.
        config: a YAML such as configs/interpret_phantom.yaml; without it no model is asked.
        training: a training YAML with model and studies; the SAE's own by default.
        changes: JSON lines with feature and text: what changes in a report when the feature is steered, for explainers.
        dry_run: say how many requests, tokens and how much money it would take, and ask nothing.
        accept_weak_judge: go on with a judge that fails its audit.
        delphi: also write Delphi's cache, explanations and scores into this folder.
        neuronpedia: also write Neuronpedia's explanation batches into this folder.
    """

    GROUP = "--"

    sae: Path = field(metadata={"positional": True})
    out: Path
    config: Path | None = None
    training: Path | None = None
    changes: Path | None = None
    dry_run: bool = False
    accept_weak_judge: bool = False
    delphi: Path | None = None
    neuronpedia: Path | None = None

    def check(self) -> None:
        check_out(self.out)


def interpret(
    options: InterpretOptions, settings: Overrides[InterpretSettings], training: Overrides[TrainConfig]
) -> None:
    """Explain an SAE's features and score the explanations on patients they were not made from.

    Model and studies are those of the SAE's training. The same command goes on after an interruption, and asks no
    question twice. Any setting can be overridden here: --n-features 20, or --source.path studies.csv.
    """
    wanted = settings.over(options.config) if options.config else InterpretSettings.from_dict(settings.values)
    config_path = options.training or options.sae / "config.yaml"
    _check_files(options, config_path)
    config = training.over(config_path)

    from sae_lens import SAE

    from sae_lens_maira.hooked.identity import check_sae_fits, fingerprint_weights
    from sae_lens_maira.hooked.loading import load_model
    from sae_lens_maira.interpret.evidence import gather_evidence
    from sae_lens_maira.interpret.making import make_models
    from sae_lens_maira.interpret.run import interpret_features, write_findings
    from sae_lens_maira.interpret.steered import read_changes
    from sae_lens_maira.sources import open_source

    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs a line per request
    source = open_source(config.source)
    sae = SAE.load_from_disk(options.sae)
    changes = read_changes(options.changes, sae.cfg.d_sae) if options.changes else {}
    models = make_models(wanted, source[: wanted.n_studies], options.out, dry_run=options.dry_run)
    if models.has_one_model:
        logger.warning("One model explains and judges: its scores may say that it agrees with itself.")
    model = load_model(config.model, source, config.policy)
    check_sae_fits(sae, model)
    options.out.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".scratch-", dir=options.out))
    try:
        evidence, random = gather_evidence(sae, model, wanted, scratch)
        weak = options.accept_weak_judge or options.dry_run
        findings = interpret_features(evidence, random, models, accept_weak_judge=weak, changes=changes)
        if options.dry_run:
            sys.stdout.write(_describe_plan(models))
            return
        facts = {
            "sae": fingerprint_weights(sae),
            "hook_name": str(sae.cfg.metadata.hook_name),
            "source": source.description,
        }
        write_findings(options.out, evidence, findings, models, facts)
        _export(options, evidence, findings, model, sae)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    sys.stdout.write(_describe(findings, models))


def _check_files(options: InterpretOptions, config_path: Path) -> None:
    """Refuse what is missing before anything large is loaded."""
    check_sae_folder(options.sae, InterpretError)
    if not config_path.is_file():
        raise InterpretError(f"There is no '{config_path}', so model and studies are unknown; give --training.")


def _export(options: InterpretOptions, evidence: Evidence, findings: Findings, model: Any, sae: Any) -> None:
    """Write the formats of other tools."""
    hook_name, main = str(sae.cfg.metadata.hook_name), findings.scored["main"]
    shareable = [study.shareable for study in evidence.corpus.studies]
    model_name = str(sae.cfg.metadata.model_name or model.cfg.model_name)
    if options.delphi is not None:
        from sae_lens_maira.interpret.formats.delphi import write_cache, write_explanations, write_scores

        write_cache(
            options.delphi,
            evidence.corpus.recording,
            evidence.corpus.firings,
            shareable,
            d_vocab=model.row_vocabulary.d_vocab,
            pad_token_id=int(model.tokenizer.pad_token_id),
            model_name=model_name,
        )
        write_explanations(options.delphi, hook_name, {f: found.text for f, found in findings.explanations.items()})
        write_scores(options.delphi, hook_name, evidence, main, findings.use.threshold)
    if options.neuronpedia is not None:
        from sae_lens_maira.interpret.formats.neuronpedia import write_batches

        by_feature = {one.feature: one for one in main}
        write_batches(
            options.neuronpedia,
            by_feature,
            model_id=model_name,
            layer=hook_name,
            judge=findings.use.judge.name,
            all_shareable=all(shareable),
        )


def _describe_plan(models: Models) -> str:
    lines = [
        f"{name}: {own.spending.describe()}"
        for name, own in (("judge", models.judge_answers), ("explainer", models.explainer_answers))
        if own is not None and not (name == "explainer" and own is models.judge_answers)
    ]
    return "\n".join([*lines, ""]) if lines else "No model is asked.\n"


def _describe(findings: Findings, models: Models) -> str:
    from sae_lens_maira.interpret.run import describe_arms

    best = sorted(findings.scored["main"], key=lambda one: -_finite(one.detection.balanced_accuracy.value))
    lines = ["feature  detection             explanation"]
    for one in best[:_N_PRINTED]:
        lines.append(f"{one.feature:7d}  {one.detection.balanced_accuracy!s:20s}  {one.explanation.text}")
    if findings.audit is not None:
        audit = findings.audit
        lines.append(
            f"judge {audit.judge}: balanced accuracy {audit.balanced_accuracy:.2f}, AUROC {audit.auroc:.2f}, bias "
            f"{audit.bias:+.2f} on {audit.n_pairs} pairs whose truth is known"
        )
    asked = models.judge_answers or models.explainer_answers
    if asked is not None:
        lines.append(f"asked now: {asked.spending.describe()}; {len(asked.record.failures)} without an answer")
    return "\n".join([*lines, *describe_arms(findings.scored), ""])


def _finite(value: float) -> float:
    return value if value == value else -1.0
