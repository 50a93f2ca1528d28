"""Mentions of findings and cues in one sentence. Where phrases overlap, the longest counts."""

from __future__ import annotations

from typing import NamedTuple

from sae_lens_maira.concepts.labeller.lexicon import Cue, Finding, Lexicon, Statement


class Span(NamedTuple):
    """A part of a sentence's words: from ``start`` up to ``end``, in characters."""

    start: int
    end: int

    def overlaps(self, other: Span) -> bool:
        """Whether they share a character."""
        return self.start < other.end and other.start < self.end


class Match(NamedTuple):
    """A finding that is mentioned, or a statement of absence, and where."""

    span: Span
    subject: Finding | Statement


class FoundCue(NamedTuple):
    """A cue and where it is."""

    span: Span
    cue: Cue


def find_matches(words: str, lexicon: Lexicon) -> list[Match]:
    """Mentions and statements in a sentence, in order.

    Longer ones exclude shorter ones that overlap with them. Two findings may share exactly the same words.
    """
    candidates = [
        Match(Span(*found.span()), subject)
        for subject in (*lexicon.findings.values(), *lexicon.statements)
        for pattern in (subject.mentions if isinstance(subject, Finding) else subject.patterns)
        for found in pattern.finditer(words)
    ]
    candidates.sort(key=lambda match: (match.span.start - match.span.end, match.span.start))
    kept: list[Match] = []
    for match in candidates:
        same = [other for other in kept if other.span.overlaps(match.span)]
        if all(other.span == match.span and other.subject is not match.subject for other in same):
            kept.append(match)
    return sorted(kept, key=lambda match: match.span)


def find_cues(words: str, lexicon: Lexicon, taken: list[Span]) -> list[FoundCue]:
    """Cues in a sentence, from left to right: at each place the longest, and the next one after its end.

    Args:
        words: the sentence's words.
        lexicon: gives the cues.
        taken: spans of statements; a cue inside of one means nothing.
    """
    candidates = [FoundCue(Span(*found.span()), cue) for cue in lexicon.cues for found in cue.pattern.finditer(words)]
    candidates = [found for found in candidates if not any(_contains(span, found.span) for span in taken)]
    candidates.sort(key=lambda found: (found.span.start, found.span.start - found.span.end))
    kept: list[FoundCue] = []
    end = 0
    for found in candidates:
        same = bool(kept) and kept[-1].span == found.span
        if found.span.start >= end or same:
            kept.append(found)
            end = found.span.end
    return kept


def _contains(outer: Span, inner: Span) -> bool:
    return outer.start <= inner.start and inner.end <= outer.end


def find_ends(words: str, lexicon: Lexicon, mentions: list[Match]) -> list[int]:
    """Where the reach of cues ends; words inside of a mention end nothing."""
    inside = [match.span for match in mentions]
    spans = [Span(*found.span()) for found in lexicon.ends.finditer(words)]
    return [span.start for span in spans if not any(span.overlaps(other) for other in inside)]
