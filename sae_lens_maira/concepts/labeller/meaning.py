"""What the cues of a sentence say of each mention: presence, side, variant and change.

1. A cue that stands before reaches every later mention, and one that stands after reaches every earlier one, up to a
   word that ends the reach. Words of change before a mention reach only the next one, save those of removal.
2. "Removed" and negation make a finding absent; otherwise uncertainty makes it uncertain.
3. A side belongs to the mention that contains it, or that it stands before; or else to the mention that it follows. In
   "right effusion and atelectasis" the second shares the side of the first.
4. A size or position is looked for inside of the mention, then before it, then after it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple, cast

from sae_lens_maira.concepts.labeller.lexicon import Finding, Lexicon, Statement
from sae_lens_maira.concepts.labeller.matching import FoundCue, Match, Span, find_cues, find_ends, find_matches
from sae_lens_maira.data.study import Change, Label

_CHANGES = {"new", "larger", "smaller", "unchanged", "removed"}
_JOIN = re.compile(r"(?<!\S)(?:and|or|with|,)(?!\S)")
_MAX_WORDS_BETWEEN_JOINED = 4


class Mention(NamedTuple):
    """What one sentence says of one finding.

    Args:
        finding: its key in the phrase list.
        label: presence and change.
        sides: that are named: right, left or both of them; empty if none is.
        variant: size or position.
        words: the words of the mention.
    """

    finding: Finding
    label: Label
    sides: tuple[str, ...]
    variant: str | None
    words: str


def read_sentence(words: str, lexicon: Lexicon) -> list[Mention]:
    """Everything that a sentence says, in order.

    Args:
        words: as :func:`~.sentences.split_sentences` gives them.
        lexicon: findings and cues.
    """
    matches = find_matches(words, lexicon)
    statements = [match for match in matches if isinstance(match.subject, Statement)]
    mentions = [match for match in matches if isinstance(match.subject, Finding)]
    cues = find_cues(words, lexicon, [match.span for match in statements])
    ends = find_ends(words, lexicon, mentions)
    found = [
        Mention(lexicon.findings[name], Label("absent"), ("right", "left"), None, words[slice(*match.span)])
        for match in statements
        if not _is_denied(words, match.span)
        for name in cast(Statement, match.subject).absent
    ]
    spans = [match.span for match in mentions]
    labels = [_label(span, mentions, cues, ends) for span in spans]
    sides = _sides(spans, words, cues, labels)
    for index, (match, label) in enumerate(zip(mentions, labels, strict=True)):
        finding = cast(Finding, match.subject)
        variant = _variant(words, finding, mentions, index)
        found.append(Mention(finding, label, sides[index], variant, words[slice(*match.span)]))
    return found


def _is_denied(words: str, span: Span) -> bool:
    """Whether a statement of absence has a "not" inside: "the lungs are not clear"."""
    return re.search(r"(?<!^)(?<!\S)(?:not|no longer)(?!\S)", words[slice(*span)]) is not None


def _label(span: Span, mentions: Sequence[Match], cues: Sequence[FoundCue], ends: Sequence[int]) -> Label:
    kinds: dict[str, int] = {}
    for found in cues:
        if found.cue.place == "anywhere" or not _reaches(found, span, mentions, ends):
            continue
        distance = max(span.start - found.span.end, found.span.start - span.end, 0)
        kinds[found.cue.kind] = min(distance, kinds.get(found.cue.kind, distance))
    if "removed" in kinds:
        return Label("absent", "removed")
    if "negation" in kinds:
        return Label("absent")
    changes = sorted((distance, kind) for kind, distance in kinds.items() if kind in _CHANGES)
    change = cast(Change, changes[0][1]) if changes else None
    return Label("uncertain" if "uncertainty" in kinds else "present", change)


def _reaches(found: FoundCue, span: Span, mentions: Sequence[Match], ends: Sequence[int]) -> bool:
    cue = found.span
    if found.cue.place == "before":
        if cue.start >= span.end:
            return False
        if found.cue.kind in _CHANGES - {"removed"} and any(
            cue.end <= m.span.start and m.span.end <= span.start for m in mentions
        ):
            return False
        return not any(cue.end <= end < span.start for end in ends)
    if cue.end <= span.start:
        return False
    return not any(span.end <= end < cue.start for end in ends)


def _variant(words: str, finding: Finding, mentions: Sequence[Match], index: int) -> str | None:
    span = mentions[index].span
    before = [match.span.end for match in mentions if match.span.end <= span.start]
    after = [match.span.start for match in mentions if match.span.start >= span.end]
    places = (
        (span.start, span.end),
        (max(before, default=0), span.start),
        (span.end, min(after, default=len(words))),
    )
    for start, end in places:
        hits = [
            (abs((start if start >= span.end else end) - hit.start()), variant)
            for variant, pattern in finding.variants.items()
            for hit in pattern.finditer(words, start, end)
        ]
        if hits:
            return min(hits)[1]
    return finding.default


def _sides(
    spans: Sequence[Span], words: str, cues: Sequence[FoundCue], labels: Sequence[Label]
) -> list[tuple[str, ...]]:
    """The sides of each mention."""
    own: list[set[str]] = [set() for _ in spans]
    inside: list[bool] = [False] * len(spans)
    for found in cues:
        if found.cue.kind != "side":
            continue
        sides = {"right", "left"} if found.cue.value == "both" else {found.cue.value}
        holders = [i for i, span in enumerate(spans) if span.overlaps(found.span)]
        later = next((i for i, span in enumerate(spans) if span.start >= found.span.end), None)
        earlier = next((i for i in reversed(range(len(spans))) if spans[i].end <= found.span.start), None)
        if not holders and later is not None and earlier is not None:
            joined = _JOIN.search(words[found.span.end : spans[later].start]) is not None
            holders = [earlier if joined else later]
        for i in holders or [i for i in (later if later is not None else earlier,) if i is not None]:
            if holders and spans[i].overlaps(found.span) and not inside[i]:
                own[i], inside[i] = set(), True
            own[i] |= sides
    _share(words, spans, own, labels)
    return [tuple(side for side in ("right", "left") if side in sides) for sides in own]


def _share(words: str, spans: Sequence[Span], own: list[set[str]], labels: Sequence[Label]) -> None:
    """Mentions without a side take that of a neighbor of the same presence that "and", "or" or a comma joins."""
    for order in (range(1, len(spans)), range(len(spans) - 2, -1, -1)):
        for i in order:
            j = i - 1 if order.step > 0 else i + 1
            between = words[min(spans[i].end, spans[j].end) : max(spans[i].start, spans[j].start)]
            is_joined = _JOIN.search(between) and len(between.split()) <= _MAX_WORDS_BETWEEN_JOINED
            if not own[i] and is_joined and labels[i].presence == labels[j].presence:
                own[i] = set(own[j])
