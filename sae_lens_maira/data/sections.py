"""Sections of a free-text radiology report, such as those of MIMIC-CXR.

1. Banners (``FINAL REPORT``, ``WET READ``, ``ADDENDUM``) and lines of underscores split a report into parts. Headings
   count in the final part. A preliminary reading or an addendum beside a final report is kept whole, so that its
   ``IMPRESSION:`` is not taken for that of the report.
2. A heading is a known name and a colon at the start of a line, in capitals or capitalized; or a known name in capitals
   alone on a line after an empty one; or one of the main names in capitals and a colon inside a line. A misspelled name
   in capitals still counts (``IMPRESSON:``). The names are in ``headings.py``.
3. A section lasts until the next heading. Sections of the request (examination, indication, technique, comparison) are
   one paragraph long: what follows after an empty line is the untitled body of the report. Unknown names in capitals
   (``LUNGS:``) belong to the text of findings and impression; elsewhere they start the untitled body.
4. Line breaks and runs of spaces become single spaces. A section that occurs twice is joined in order.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from sae_lens_maira.data.headings import EXAMINATION_WORDS, MAIN_NAMES, classify

_SEPARATOR = re.compile(r"[_=*-]{8,}")
_BANNER = re.compile(r"(?P<name>FINAL REPORT|FINAL ADDENDUM|ADDENDUM|ADDENDA|WET ?READ)\b(?P<rest>.*)")
_NAME = re.compile(r"(?P<name>[A-Z][A-Za-z/,&()'. \t-]{1,60}?)\s*:(?P<rest>.*)")
_INSIDE = re.compile(rf"(?<=\s)(?P<name>(?:{MAIN_NAMES}))\s*:")
_REQUEST = ("examination", "indication", "technique", "comparison")
_NARRATES = re.compile(
    r"\b(?:is|are|was|were|has|have|had|no|there|shows?|seen|been|unchanged|stable|normal|clear)\b", re.I
)


@dataclass(frozen=True, slots=True)
class ReportSections:
    """The sections of one report; None for a section that it does not have.

    Args:
        examination: what was examined, including the title of the report.
        indication: why: indication, history, reason for examination, clinical information.
        technique: how the images were taken.
        comparison: the studies that it is compared with.
        findings: of the final report, including "findings and impression".
        impression: of the final report, or its conclusion.
        recommendations: what to do next.
        notification: who was notified.
        wet_read: a preliminary reading.
        addendum: what was added later.
        untitled: paragraphs under no heading.
    """

    examination: str | None = None
    indication: str | None = None
    technique: str | None = None
    comparison: str | None = None
    findings: str | None = None
    impression: str | None = None
    recommendations: str | None = None
    notification: str | None = None
    wet_read: str | None = None
    addendum: str | None = None
    untitled: str | None = None

    @property
    def substitute(self) -> str | None:
        """What can replace missing findings: the untitled body, or else the impression."""
        return self.untitled or self.impression


def parse_sections(text: str) -> ReportSections:
    """Split a free-text report."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for kind, paragraphs in _blocks(text):
        if kind in _REQUEST:
            found[kind] += paragraphs[:1]
            found["untitled"] += paragraphs[1:]
        elif kind == "preamble":
            for paragraph in paragraphs:
                found["examination" if _is_title(paragraph) else "untitled"].append(paragraph)
        else:
            found[kind] += paragraphs
    return ReportSections(
        **{kind: joined for kind, texts in found.items() if (joined := " ".join(filter(None, texts)))}
    )


def _blocks(text: str) -> Iterator[tuple[str, list[str]]]:
    """Section kinds and their paragraphs, in the order of the report."""
    lines = [line.strip() for line in text.splitlines()]
    has_final_part = any(line.startswith("FINAL REPORT") for line in lines)
    kind, paragraphs = "preamble", [""]
    for line, follows_gap in zip(lines, [True, *(not line for line in lines)], strict=False):
        if _SEPARATOR.fullmatch(line):
            if kind in ("wet_read", "addendum"):
                yield kind, paragraphs
                kind, paragraphs = "preamble", [""]
            else:
                paragraphs.append("")
            continue
        if not line:
            if paragraphs[-1]:
                paragraphs.append("")
            continue
        keeps_headings = has_final_part and kind in ("wet_read", "addendum")
        for heading, words in _pieces(line, kind, follows_gap, banners_only=keeps_headings):
            if heading is not None:
                yield kind, paragraphs
                kind, paragraphs = heading, [""]
            paragraphs[-1] = " ".join([*paragraphs[-1].split(), *words.split()])
    yield kind, paragraphs


def _pieces(line: str, kind: str, follows_gap: bool, *, banners_only: bool) -> Iterator[tuple[str | None, str]]:
    """The line as pairs of a heading's kind (or None) and text; ``kind`` is the section that the line continues."""
    banner = _BANNER.fullmatch(line)
    if banner is not None:
        name, rest = banner["name"], banner["rest"].lstrip(" :.-")
        opened = (
            "preamble" if name == "FINAL REPORT" else "addendum" if name.startswith(("FINAL", "ADD")) else "wet_read"
        )
        yield opened, "" if opened == "preamble" else rest
        if opened == "preamble" and rest:
            yield from _pieces(rest, opened, True, banners_only=False)
        return
    if banners_only:
        yield None, line
        return
    opened, rest = _leading(line, kind, follows_gap)
    start = 0
    for match in _INSIDE.finditer(rest):
        yield opened, rest[start : match.start()]
        opened, start = classify(match["name"]), match.end()
    yield opened, rest[start:]


def _leading(line: str, kind: str, follows_gap: bool) -> tuple[str | None, str]:
    """The kind of the heading at the start of a line, or None, and the text after it."""
    match = _NAME.fullmatch(line)
    if match is None:
        alone = line.rstrip(" .-")
        if follows_gap and alone.isupper() and (known := classify(alone)) is not None:
            return known, ""
        return None, line
    name, rest = match["name"].strip(), match["rest"]
    known = classify(name)
    if known is not None:
        return known, rest
    if name.isupper() and kind in (*_REQUEST, "preamble"):
        return "untitled", rest if EXAMINATION_WORDS.search(name) else line
    return None, line


def _is_title(paragraph: str) -> bool:
    """Whether a paragraph before all headings names the examination, rather than saying what it shows."""
    if not re.search(r"[a-z]", paragraph):
        return True
    return len(paragraph.split()) <= 12 and not _NARRATES.search(paragraph)
