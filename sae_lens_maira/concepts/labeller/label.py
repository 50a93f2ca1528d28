"""From the sentences of a report to its labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sae_lens_maira.concepts.labeller.lexicon import Lexicon
from sae_lens_maira.concepts.labeller.meaning import Mention, read_sentence
from sae_lens_maira.concepts.labeller.sentences import split_sentences
from sae_lens_maira.data.study import Label, SentenceLabel

_RANK = {"present": 2, "uncertain": 1, "absent": 0}


@dataclass(frozen=True)
class LabelledReport:
    """What a report says.

    Args:
        labels: of every concept that it says something of; the others are not mentioned, which is not the same as
            absent. Of several statements, present counts before uncertain, and uncertain before absent.
        findings: presence of every finding, whatever its side and size: "effusion" for both sides and sizes.
        sentences: what each sentence says, with its place in the report.
        mentions: as found, with the number of their sentence.
    """

    labels: Mapping[str, Label]
    findings: Mapping[str, Label]
    sentences: tuple[SentenceLabel, ...]
    mentions: tuple[tuple[int, Mention], ...]


def label_report(report: str, lexicon: Lexicon) -> LabelledReport:
    """Read a report. It never raises: text that no phrase matches says nothing.

    Args:
        report: free text.
        lexicon: the findings and their words.
    """
    labels: dict[str, Label] = {}
    findings: dict[str, Label] = {}
    sentences: list[SentenceLabel] = []
    mentions: list[tuple[int, Mention]] = []
    for sentence in split_sentences(report):
        said: dict[str, Label] = {}
        for mention in read_sentence(sentence.words, lexicon):
            mentions.append((len(sentences), mention))
            _put(findings, mention.finding.name, mention.label)
            for name in _names(mention):
                _put(said, name, mention.label)
        for name, label in said.items():
            _put(labels, name, label)
        sentences.append(SentenceLabel(sentence.start, sentence.end, said))
    if lexicon.otherwise is not None:
        name, ignored = lexicon.otherwise
        is_any = any(label.positive for other, label in labels.items() if other not in ignored)
        labels[name] = Label("absent" if is_any else "present")
    return LabelledReport(labels, findings, tuple(sentences), tuple(mentions))


def _names(mention: Mention) -> list[str]:
    """Concepts of a mention. What is absent without a side is absent on both, and in every variant."""
    finding, is_absent = mention.finding, mention.label.presence == "absent"
    sides = mention.sides or (("right", "left") if is_absent else ())
    variants: list[str | None] = list(finding.variants) if is_absent and finding.variants else [mention.variant]
    return [name for variant in variants for name in finding.labels(sides, variant)]


def _put(labels: dict[str, Label], name: str, label: Label) -> None:
    """Keep the stronger of two statements; of equal ones, the first, with the change of the second if it has none."""
    known = labels.get(name)
    is_stronger = known is None or _RANK[label.presence] > _RANK[known.presence]
    adds_change = known is not None and label.presence == known.presence and known.change is None
    if is_stronger or adds_change:
        labels[name] = label
