"""Explanations without a model, before a judge that cannot err: on phantom studies that no method was tuned on.

For each seed of the phantom's studies, on patients that no explanation was made from:

1. of the latents that detect a concept (AUROC of 0.95 or more over studies), the share whose explanation names it;
2. the mean detection score of rules and of every control;
3. the same rules made from facts that were shuffled over the units, for the SAE and for random directions.

``python -m benchmarks.interpret SAE`` takes the folder of an SAE that was trained on the phantom.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from sae_lens_maira.hooked.loading import load_model
from sae_lens_maira.interpret.evidence import Evidence, gather_evidence
from sae_lens_maira.interpret.explain import explain_by_rules
from sae_lens_maira.interpret.explanation import explanation_of
from sae_lens_maira.interpret.judges import TruthJudge
from sae_lens_maira.interpret.rules import RuleFinder
from sae_lens_maira.interpret.run import Models, describe_arms, interpret_features, known_truth
from sae_lens_maira.interpret.scoring import JudgeUse, score_arm
from sae_lens_maira.interpret.settings import InterpretSettings
from sae_lens_maira.interpret.truth import check_naming
from sae_lens_maira.measures.intervals import Interval, bootstrap_mean
from sae_lens_maira.phantom.source import PhantomSource
from sae_lens_maira.setting_values import read_yaml
from sae_lens_maira.training.config import TrainConfig

LEAST_NAMED = 0.85


def shuffled_rules(evidence: Evidence, features: list[int]) -> Interval:
    """Mean detection score of rules that were made from shuffled facts, and are scored on true ones."""
    finder = RuleFinder(
        evidence.corpus, evidence.relative, evidence.masks["explain"], evidence.masks["choose"], rate=1.0, shuffle=7
    )
    found = {feature: explanation_of(rule.rule) for feature in features if (rule := finder.best(feature))}
    # A judge who knows shuffled facts: what was random on the patients to explain on stays so on those to score on.
    units = [replace(unit, facts=own) for unit, own in zip(evidence.corpus.units, finder.facts_of_units, strict=True)]
    shuffled = replace(evidence, corpus=replace(evidence.corpus, units=units), finders={})
    shuffled.finders["score"] = evidence.examples("score")
    scored = score_arm(shuffled, found, known_truth(shuffled), "main")
    return bootstrap_mean(np.array([one.detection.balanced_accuracy.value for one in scored]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sae", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101])
    parser.add_argument("--studies", type=int, default=600)
    options, _ = parser.parse_known_args()
    if options.sae is None or not (options.sae / "cfg.json").is_file():
        print("left out: give the folder of an SAE that was trained on the phantom")
        return
    from sae_lens import SAE

    sae = SAE.load_from_disk(options.sae)
    config = TrainConfig.from_dict(read_yaml(options.sae / "config.yaml"))
    settings = InterpretSettings(n_studies=options.studies, n_features=None, intruder=True)
    for seed in options.seeds:
        model = load_model(config.model, PhantomSource(options.studies, seed), config.policy)
        with tempfile.TemporaryDirectory() as folder:
            evidence, random = gather_evidence(sae, model, settings, Path(folder), show_progress=False)
            findings = interpret_features(evidence, random, Models(JudgeUse(TruthJudge(()))))
            naming = check_naming(evidence, explain_by_rules(evidence, findings.features), findings.features)
            verdict = "as asked for" if naming.share.value >= LEAST_NAMED else "a miss"
            print(f"seed {seed}: names the right concept of {naming.n_features} latents: {naming.share} ({verdict})")
            print("\n".join(describe_arms(findings.scored)))
            right = np.array([found.value for found in findings.intruders.values()])
            print(f"intruder {bootstrap_mean(right)} (chance 0.2)")
            for name, own in (("SAE", evidence), ("random directions", random)):
                print(f"rules of shuffled facts, {name}: {shuffled_rules(own, own.choose_features())} (chance 0.5)")


if __name__ == "__main__":
    main()
