"""Labels of a whole source of reports, and their agreement with labels that come with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm.auto import tqdm

from sae_lens_maira.concepts.labeller.agreement import Agreement, compare_labels
from sae_lens_maira.concepts.labeller.label import LabelledReport, label_report
from sae_lens_maira.concepts.labeller.lexicon import Lexicon
from sae_lens_maira.concepts.labeller.mesh import mesh_findings
from sae_lens_maira.data.openi_reports import packaged_reports, parse_openi_report, read_reports, report_number
from sae_lens_maira.data.source import OpeniConfig, SourceConfig
from sae_lens_maira.results import Result, write_result
from sae_lens_maira.sources import open_source

KIND = "labels"
SOURCE = "rules"


@dataclass(frozen=True)
class Reports:
    """Reports and the labels that come with them.

    Args:
        texts: by the study's id.
        others: for each study, in order, whether each concept is positive.
        other_name: who says so.
        by_finding: whether ``others`` are about findings of the phrase list instead of concepts.
    """

    texts: dict[str, str]
    others: list[dict[str, bool]]
    other_name: str
    by_finding: bool


def read_openi(path: Path | None, lexicon: Lexicon) -> Reports:
    """All of Open-i's reports, findings and impression, with the findings that their MeSH tags name.

    Args:
        path: the reports' folder or archive; the copy in the package torchxrayvision if None.
        lexicon: a phrase list that the tags are mapped to.
    """
    files = read_reports(path or packaged_reports())
    reports = sorted((parse_openi_report(xml, name) for name, xml in files), key=report_number)
    texts = {r.report_id: " ".join(text for text in (r.findings, r.impression) if text) for r in reports}
    return Reports(texts, [mesh_findings(r.major, lexicon.name) for r in reports], "Open-i's MeSH", True)


def read_source(config: SourceConfig, lexicon: Lexicon) -> Reports:
    """The findings of any source of studies, with its own labels; Open-i's reports are read whole."""
    if isinstance(config, OpeniConfig):
        return read_openi(None if config.path is None else Path(config.path), lexicon)
    texts: dict[str, str] = {}
    others: list[dict[str, bool]] = []
    for study in open_source(config):
        texts[study.study_id] = study.findings or ""
        others.append({name: label.positive for name, label in study.labels.items()})
    return Reports(texts, others, f"the labels of {config.kind}", False)


def label_reports(texts: Mapping[str, str], lexicon: Lexicon) -> dict[str, LabelledReport]:
    """Read all reports."""
    return {study: label_report(text, lexicon) for study, text in tqdm(texts.items(), desc="reports")}


def agreements(
    reports: Reports, labelled: Mapping[str, LabelledReport], lexicon: Lexicon, n_examples: int
) -> list[Agreement]:
    """Compare the rules' labels with those that come with the reports. What is not mentioned is not positive."""
    if reports.by_finding:
        ours = [_positive_findings(report, lexicon) for report in labelled.values()]
    else:
        names = sorted({name for known in reports.others for name in known} & _concepts(lexicon))
        ours = [
            {name: name in report.labels and report.labels[name].positive for name in names}
            for report in labelled.values()
        ]
    return compare_labels(list(labelled), ours, reports.others, n_examples=n_examples)


def write_labels(
    out: Path, reports: Reports, labelled: Mapping[str, LabelledReport], found: Sequence[Agreement], lexicon: Lexicon
) -> Result:
    """Write the labels, in the form that external judges use, and the agreement; no text of a report is written."""
    rows: dict[str, list[Any]] = {"study_id": [], "concept": [], "value": [], "source": [], "change": []}
    for study, report in labelled.items():
        for concept, label in report.labels.items():
            for name, value in zip(rows, (study, concept, label.presence, SOURCE, label.change), strict=True):
                rows[name].append(value)
    labels = pa.table({name: pa.array(column, pa.string()) for name, column in rows.items()})
    table = pa.Table.from_pylist([_row(own) for own in found])
    summary = {"lexicon": lexicon.name, "n_reports": len(labelled), "compared_with": reports.other_name}
    return write_result(out, KIND, {"labels": labels, "agreement": table}, summary)


def describe(found: Sequence[Agreement], other_name: str) -> str:
    """The table for the screen."""
    lines = [
        f"compared with {other_name}",
        f"{'concept':<32}{'F1':>6}{'kappa':>7}{'both':>6}{'only rules':>12}{'only they':>11}",
    ]
    lines += [
        f"{own.concept:<32}{own.f1:>6.3f}{own.kappa:>7.3f}{own.n_both:>6}{own.n_only_first:>12}{own.n_only_second:>11}"
        for own in found
    ]
    return "\n".join(lines)


def describe_examples(found: Sequence[Agreement], reports: Reports, labelled: Mapping[str, LabelledReport]) -> str:
    """Examples of each disagreement: the study, and the sentences in which the rules saw the concept."""
    lines = []
    for own in found:
        for who, studies in (("only rules", own.only_first), ("only they", own.only_second)):
            for study in studies:
                report, text = labelled[study], reports.texts[study]
                numbers = dict.fromkeys(
                    number
                    for number, mention in report.mentions
                    if own.concept in (mention.finding.name, *report.sentences[number].labels)
                )
                quotes = [text[slice(report.sentences[n].start, report.sentences[n].end)] for n in numbers]
                lines.append(f"{own.concept}, {who}, {study}: {' | '.join(quotes) or 'no sentence mentions it'}")
    return "\n".join(lines)


def _positive_findings(report: LabelledReport, lexicon: Lexicon) -> dict[str, bool]:
    """Whether each finding is positive, and for each sided one, as ``finding/right``, whether it is on that side."""
    found = {name: name in report.findings and report.findings[name].positive for name in lexicon.findings}
    sides = {f"{m.finding.name}/{side}" for _, m in report.mentions if m.label.positive for side in m.sides}
    for name, finding in lexicon.findings.items():
        if finding.is_sided:
            found |= {f"{name}/{side}": f"{name}/{side}" in sides for side in ("right", "left")}
    return found


def _concepts(lexicon: Lexicon) -> set[str]:
    """Every concept that a phrase list can name."""
    names = set() if lexicon.otherwise is None else {lexicon.otherwise[0]}
    for finding in lexicon.findings.values():
        for variant in list(finding.variants) or [None]:
            names |= set(finding.labels(("right", "left"), variant))
    return names


def _row(own: Agreement) -> dict[str, Any]:
    precision, recall = own.precision, own.recall
    return {
        "concept": own.concept,
        "f1": own.f1,
        "kappa": own.kappa,
        "n_both": own.n_both,
        "n_only_rules": own.n_only_first,
        "n_only_other": own.n_only_second,
        "n_neither": own.n_neither,
        "precision": precision.value,
        "precision_low": precision.low,
        "precision_high": precision.high,
        "recall": recall.value,
        "recall_low": recall.low,
        "recall_high": recall.high,
        "examples_only_rules": list(own.only_first),
        "examples_only_other": list(own.only_second),
    }
