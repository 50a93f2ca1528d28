"""``sae-lens-maira label``."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sae_lens_maira.cli.arguments import check_out
from sae_lens_maira.data.source import OpeniConfig, SourceConfig
from sae_lens_maira.settings import AtLeastZero, Settings


@dataclass(frozen=True)
class LabelOptions(Settings):
    """Options of the verb.

    Args:
        out: the folder of the results.
        lexicon: a phrase list of this package.
        phrases: your own phrase list, instead.
        examples: print this many examples of each kind of disagreement; they quote the reports.
    """

    GROUP = "--"

    out: Path
    lexicon: Literal["phantom", "chexpert"] = "phantom"
    phrases: Path | None = None
    examples: AtLeastZero = 0

    def check(self) -> None:
        check_out(self.out)


@dataclass(frozen=True)
class LabelSettings(Settings):
    """What is read.

    Args:
        source: where studies come from.
    """

    source: SourceConfig = field(default_factory=OpeniConfig)


def label(options: LabelOptions, settings: LabelSettings) -> None:
    """Label the reports of a source by rules, and print how well they agree with the labels that come with it."""
    from sae_lens_maira.concepts.labeller import report
    from sae_lens_maira.concepts.labeller.lexicon import packaged_lexicon, read_lexicon

    lexicon = packaged_lexicon(options.lexicon) if options.phrases is None else read_lexicon(options.phrases)
    reports = report.read_source(settings.source, lexicon)
    labelled = report.label_reports(reports.texts, lexicon)
    found = report.agreements(reports, labelled, lexicon, max(options.examples, 5))
    report.write_labels(options.out, reports, labelled, found, lexicon)
    if options.examples:
        sys.stdout.write(report.describe_examples(found, reports, labelled) + "\n\n")
    sys.stdout.write(report.describe(found, reports.other_name) + f"\n{options.out}: {len(labelled)} reports\n")
