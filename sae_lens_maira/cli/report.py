"""``sae-lens-maira report``."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from sae_lens_maira.errors import printable_lines
from sae_lens_maira.settings import AtLeastOne, ModelConfig, Settings


@dataclass(frozen=True)
class ReportOptions(Settings):
    """Options of the verb.

    Args:
        frontal: current frontal image (PNG, JPEG, DICOM, ...).
        lateral: current lateral image.
        prior: prior frontal image.
        indication: why the study was requested.
        technique: how the images were taken.
        comparison: the earlier studies to compare with.
        prior_report: the report of the prior study.
        grounded: ask for bounding boxes.
        max_new_tokens: longest report, in tokens; 300 by default, 450 with --grounded.
        model: the model that writes the report.
    """

    GROUP = "--"

    frontal: Path = field(metadata={"positional": True})
    lateral: Path | None = None
    prior: Path | None = None
    indication: str | None = None
    technique: str | None = None
    comparison: str | None = None
    prior_report: str | None = None
    grounded: bool = False
    max_new_tokens: AtLeastOne | None = None
    model: ModelConfig = field(default_factory=lambda: ModelConfig(name="microsoft/maira-2", dtype="auto"))


def report(options: ReportOptions) -> None:
    """Write the findings of one study. Without MAIRA-2's weights, try --model phantom."""
    from sae_lens_maira.data.image_files import open_image
    from sae_lens_maira.hooked.loading import load_generator
    from sae_lens_maira.maira2 import FindingsPrompt

    prompt = FindingsPrompt(
        frontal=options.frontal,
        lateral=options.lateral,
        prior=options.prior,
        indication=options.indication,
        technique=options.technique,
        comparison=options.comparison,
        prior_report=options.prior_report,
        grounded=options.grounded,
    )
    for name, path in {"frontal": options.frontal, "lateral": options.lateral, "prior": options.prior}.items():
        if path is not None:
            open_image(path, f"{name} image")  # before the model, which takes minutes
    model, processor = load_generator(options.model)
    inputs = processor(prompt).to(model.device)
    max_new_tokens = options.max_new_tokens or prompt.max_new_tokens
    output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    (text,) = processor.decode_reports(output, inputs["input_ids"])
    sys.stdout.write(printable_lines(text) + "\n")
