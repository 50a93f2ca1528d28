"""Score a phantom model on held-out studies: `python -m sae_lens_maira.phantom.training.evaluate`.

1. Findings: greedy reports, read back by the grammar, against the labels; micro-F1 and F1 per concept.
2. Blank: the same prompts with every image blanked. A model that looks at images has little left to report.
3. Prior: studies in which a concept is unchanged, once as they are and once with a prior image that lacks the concept
   (without the prior report in both). The report has to say "new" instead.
4. Boxes: how many grounded reports are well formed, and how well their boxes overlap the true ones.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from sae_lens_maira.maira2.adapter import study_prompt
from sae_lens_maira.maira2.modeling import Maira2ForConditionalGeneration
from sae_lens_maira.maira2.processing import Maira2Processor
from sae_lens_maira.phantom.generate import PhantomStudy, counterfactual, studies
from sae_lens_maira.phantom.model.pretrained import PHANTOM_PATH
from sae_lens_maira.phantom.words.scoring import ParsedReport, Scores, box_ious, parse_report, positives

HELD_OUT_SEED = 1_000_003
"""Training never uses studies of this seed."""
_MAX_NEW_TOKENS, _MAX_NEW_TOKENS_GROUNDED = 160, 240


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The scores. Shares and F1 run from 0 to 1; nan means that there was nothing to score."""

    n_studies: int
    micro_f1: float
    micro_f1_blank: float
    f1_by_concept: dict[str, float]
    change_accuracy: float
    """Share with the right change, of the positive concepts rightly reported in studies with a prior."""
    unparsed_share: float
    """Share of generated sentences that are not in the grammar."""
    n_prior_swaps: int
    prior_swap_share: float
    """Share that becomes new with a prior that lacks the concept, of the concepts rightly called unchanged."""
    box_iou: float
    """Mean over the concepts that truly have boxes, in all grounded reports; one without a reported box counts 0."""
    box_iou_by_concept: dict[str, float]
    well_formed_share: float
    """Share of grounded reports without malformed markup."""


class _Swap(NamedTuple):
    """A study with an unchanged concept, the same study with a prior that lacks it, and the concept."""

    unchanged: PhantomStudy
    new: PhantomStudy
    concept: str


def evaluate(path: Path | str = PHANTOM_PATH, n_studies: int = 500, *, batch_size: int = 50) -> Evaluation:
    """Score the model at ``path`` on the first ``n_studies`` held-out studies."""
    model = Maira2ForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()
    processor = Maira2Processor.from_pretrained(path)
    return score(Reporter(model, processor, batch_size), list(studies(n_studies, HELD_OUT_SEED)))


class Reporter:
    """Greedy reports for studies, in batches of about the same length."""

    def __init__(self, model: Any, processor: Maira2Processor, batch_size: int) -> None:
        self.model, self.processor, self.batch_size = model, processor, batch_size

    def reports(
        self, of: Sequence[PhantomStudy], task: str, *, grounded: bool = False, blank: bool = False
    ) -> list[ParsedReport]:
        """Parsed reports in the order of ``of``; ``blank`` replaces every image by the mean gray level."""
        texts: list[str] = [""] * len(of)
        order = sorted(range(len(of)), key=lambda i: (of[i].lateral is not None) + (of[i].prior_frontal is not None))
        for indices in tqdm(list(_chunks(order, self.batch_size)), desc=task):
            inputs = self.processor([study_prompt(of[i], "prompt", grounded=grounded) for i in indices])
            if blank:
                inputs["pixel_values"] = torch.zeros_like(inputs["pixel_values"])
            limit = _MAX_NEW_TOKENS_GROUNDED if grounded else _MAX_NEW_TOKENS
            with torch.inference_mode():
                output = self.model.generate(**inputs, max_new_tokens=limit, do_sample=False)
            for i, text in zip(indices, self.processor.decode_reports(output, inputs["input_ids"]), strict=True):
                texts[i] = text
        return [parse_report(text) for text in texts]


def score(reporter: Reporter, held_out: Sequence[PhantomStudy]) -> Evaluation:
    """All scores of a model on some studies."""
    plain = reporter.reports(held_out, "findings")
    scores = _scores(plain, held_out)
    blank = _scores(reporter.reports(held_out, "blank", blank=True), held_out)
    n_swaps, swap_share = _score_swaps(reporter, prior_swaps(held_out))
    grounded = reporter.reports(held_out, "grounded", grounded=True)
    ious = [
        (name, value)
        for report, study in zip(grounded, held_out, strict=True)
        for name, value in box_ious(report, study.sentences).items()
    ]
    by_concept = {name: float(np.mean([v for n, v in ious if n == name])) for name in dict(ious)}
    n_sentences = sum(len(report.sentences) + len(report.unparsed) for report in plain)
    return Evaluation(
        n_studies=len(held_out),
        micro_f1=scores.micro_f1,
        micro_f1_blank=blank.micro_f1,
        f1_by_concept=scores.f1_by_concept,
        change_accuracy=_change_accuracy(plain, held_out),
        unparsed_share=_mean(sum(len(report.unparsed) for report in plain), n_sentences),
        n_prior_swaps=n_swaps,
        prior_swap_share=swap_share,
        box_iou=float(np.mean([value for _, value in ious])) if ious else float("nan"),
        box_iou_by_concept=dict(sorted(by_concept.items())),
        well_formed_share=_mean(sum(report.malformed == 0 for report in grounded), len(grounded)),
    )


def prior_swaps(held_out: Iterable[PhantomStudy]) -> list[_Swap]:
    """One swap per study with an unchanged concept; of several, the concept with the fewest swaps so far.

    The prior report is left out on both sides, because it would give the answer away.
    """
    swaps: list[_Swap] = []
    tried: dict[str, int] = {}
    for study in held_out:
        prior = study.recipe.prior
        unchanged = [name for name in study.recipe.state if study.labels[name].change == "unchanged"]
        if prior is None or not unchanged:
            continue
        concept = min(unchanged, key=lambda name: tried.get(name, 0))
        tried[concept] = tried.get(concept, 0) + 1
        without = {name: look for name, look in prior.items() if name != concept}
        swaps.append(
            _Swap(
                replace(study, prior_report=None),
                replace(counterfactual(study, prior=without), prior_report=None),
                concept,
            )
        )
    return swaps


def _score_swaps(reporter: Reporter, swaps: Sequence[_Swap]) -> tuple[int, float]:
    before = reporter.reports([swap.unchanged for swap in swaps], "prior")
    after = reporter.reports([swap.new for swap in swaps], "prior swapped")
    said = [
        new.changes().get(swap.concept) == "new"
        for swap, old, new in zip(swaps, before, after, strict=True)
        if old.changes().get(swap.concept) == "unchanged"
    ]
    return len(said), _mean(sum(said), len(said))


def _scores(reports: Iterable[ParsedReport], of: Iterable[PhantomStudy]) -> Scores:
    scores = Scores()
    for report, study in zip(reports, of, strict=True):
        scores.add(report.positives, positives(study.labels))
    return scores


def _change_accuracy(reports: Iterable[ParsedReport], of: Iterable[PhantomStudy]) -> float:
    right = [
        report.changes()[name] == study.labels[name].change
        for report, study in zip(reports, of, strict=True)
        if study.prior_frontal is not None
        for name in report.positives & positives(study.labels)
    ]
    return _mean(sum(right), len(right))


def _mean(total: float, n: int) -> float:
    return total / n if n else float("nan")


def _chunks(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def summary(evaluation: Evaluation) -> str:
    """The scores as a Markdown table with the wanted values, then a table of all concepts."""
    seen = {name: f1 for name, f1 in evaluation.f1_by_concept.items() if not math.isnan(f1)}
    lowest = min(seen, key=lambda name: seen[name])
    rows = [
        ("micro-F1 of findings", f"{evaluation.micro_f1:.3f}", "at least 0.90"),
        ("lowest F1 of a visible concept", f"{evaluation.f1_by_concept[lowest]:.3f} ({lowest})", "at least 0.70"),
        ("micro-F1 with blanked images", f"{evaluation.micro_f1_blank:.3f}", "below 0.35"),
        (
            '"unchanged" becomes "new" when the prior loses the finding',
            f"{evaluation.prior_swap_share:.3f} of {evaluation.n_prior_swaps}",
            "at least 0.80",
        ),
        ("mean box IoU, grounded", f"{evaluation.box_iou:.3f}", "at least 0.50"),
        ("well-formed grounded reports", f"{evaluation.well_formed_share:.3f}", ""),
        ("right change, of concepts rightly said", f"{evaluation.change_accuracy:.3f}", ""),
        ("sentences outside of the grammar", f"{evaluation.unparsed_share:.4f}", ""),
    ]
    lines = [f"Held-out studies: {evaluation.n_studies}", "", "| score | value | wanted |", "| --- | --- | --- |"]
    lines += [f"| {name} | {value} | {wanted} |" for name, value, wanted in rows]
    lines += ["", "| concept | F1 | box IoU |", "| --- | --- | --- |"]
    for name, f1 in evaluation.f1_by_concept.items():
        lines.append(f"| {name} | {f1:.3f} | {evaluation.box_iou_by_concept.get(name, float('nan')):.3f} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=PHANTOM_PATH, help="checkpoint folder; default: the shipped one")
    parser.add_argument("--studies", type=int, default=500, help="held-out studies to score on")
    parser.add_argument("--json", type=Path, help="also write the scores here")
    given = parser.parse_args(arguments)
    evaluation = evaluate(given.model, given.studies)
    if given.json:
        given.json.write_text(json.dumps(asdict(evaluation), indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(summary(evaluation) + "\n")


if __name__ == "__main__":
    main()
