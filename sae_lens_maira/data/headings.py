"""The names of sections in radiology reports, and the sections that they stand for."""

from __future__ import annotations

import difflib
import re

_EXAM = r"(?:EXAM|EXAMS|EXAMINATION|EXAMINATIONS|STUDY|STUDIES|FILM|FILMS|RADIOGRAPH|RADIOGRAPHS|IMAGING|PROCEDURE)"
_OF = r"(?:CLINICAL|PATIENT|MEDICAL|BRIEF|PAST|RELEVANT|PERTINENT|UNDERLYING|PRESENTING|SURGICAL)"
_PATTERNS: dict[str, str] = {
    "findings": r"(?:RADIOGRAPHIC |CHEST |REPORT |OTHER |INCIDENTAL )?FINDINGS?",
    "impression": r"(?:FINAL |OVERALL )?(?:IMPRESSIONS?|CONCLUSIONS?|OPINION|INTERPRETATION|ASSESSMENT)",
    "indication": (
        rf"(?:{_OF} )*(?:HISTORY|HISTORIES|INDICATIONS?|INFORMATION|DATA|CONCERN|QUESTION|CONDITION|DETAILS|DIAGNOSIS)"
        rf"(?: (?:FOR|OF) (?:(?:THE|THIS) )?(?:{_EXAM}|PRESENT ILLNESS))?"
        rf"|REASONS?(?: FOR (?:(?:THE|THIS) )?(?:{_EXAM}|REQUEST|REFERRAL|VISIT))?"
        r"|HX|(?:PROVISIONAL|ADMITTING) DIAGNOSIS"
    ),
    "technique": r"TECHNIQUES?|(?:RADIOGRAPHIC |IMAGING )TECHNIQUE|PROTOCOL|PROJECTIONS?|VIEWS?|(?:NUMBER OF )VIEWS",
    "comparison": (
        rf"COMPARISONS?(?: {_EXAM})?(?: (?:DATE|DATES|TO|WITH))?|REFERENCE {_EXAM}|(?:PRIORS?|PREVIOUS)(?: {_EXAM})?"
        r"|COMPARED (?:TO|WITH)"
    ),
    "examination": (
        rf"(?:{_EXAM}|(?:TYPE OF|RADIOGRAPHIC|RADIOLOGICAL) {_EXAM})(?: (?:TYPE|PERFORMED|NAME|DATE|TIME))?"
        r"|DATE(?: AND TIME)?(?: OF (?:THE )?(?:EXAM|EXAMINATION|STUDY|SERVICE))?|TIME OF (?:EXAM|EXAMINATION|STUDY)"
    ),
    "recommendations": r"RECOMMENDATIONS?|(?:SUGGESTED )?FOLLOW ?UP RECOMMENDATIONS?",
    "notification": r"NOTIFICATIONS?|COMMUNICATIONS?|CRITICAL (?:RESULTS?|FINDINGS?)(?: COMMUNICATION)?",
    "wet_read": (
        r"WET ?READ(?:ING)?(?: VERSION)?|(?:PRELIMINARY|PROVISIONAL) (?:REPORT|READ|READING|IMPRESSION|FINDINGS)"
        r"|(?:PROVISIONAL FINDINGS IMPRESSION )?PFI|PROVISIONAL FINDINGS IMPRESSION"
    ),
    "addendum": r"(?:FINAL )?ADDEND(?:UM|A)(?: (?:REPORT|TO))?",
}
_COMPILED = {kind: re.compile(pattern) for kind, pattern in _PATTERNS.items()}
_OFTEN_MISSPELLED = {
    "FINDINGS": "findings",
    "IMPRESSION": "impression",
    "CONCLUSION": "impression",
    "INDICATION": "indication",
    "TECHNIQUE": "technique",
    "COMPARISON": "comparison",
    "EXAMINATION": "examination",
    "RECOMMENDATION": "recommendations",
    "NOTIFICATION": "notification",
    "ADDENDUM": "addendum",
}

MAIN_NAMES = (
    r"(?:CLINICAL )?(?:INDICATION|HISTORY|INFORMATION)|REASON FOR (?:EXAM|EXAMINATION|STUDY)|EXAM|EXAMINATION|TECHNIQUE"
    r"|COMPARISONS?|FINDINGS(?: AND IMPRESSION| ?/ ?IMPRESSION)?|IMPRESSION|CONCLUSION|NOTIFICATION"
    r"|RECOMMENDATION(?:S|\(S\))?"
)
"""A regular expression for names that are headings even inside a line, if they are in capitals and have a colon."""

EXAMINATION_WORDS = re.compile(r"\b(?:CHEST|VIEWS?|RADIOGRAPHS?|PORTABLE|PA|AP|LATERAL|FRONTAL|X-?RAYS?|FILMS?)\b")
"""Words by which a heading names the examination, such as ``CHEST, TWO VIEWS``."""


def classify(name: str) -> str | None:
    """The section that a heading's name stands for, as a field of ``ReportSections``; None for any other name.

    Joined names (``FINDINGS AND IMPRESSION``, ``EXAM/TECHNIQUE``) stand for the findings if they name them, or else for
    the first of them. A misspelled name counts if it is one word in capitals.
    """
    plain = " ".join(re.sub(r"[^A-Z/&]", " ", name.upper().replace("(S)", "S")).replace("/", " / ").split())
    kind = _exact(plain.replace(" / ", " "))
    if kind is not None:
        return kind
    parts = [part.strip() for part in re.split(r"/|&|\bAND\b|\bWITH\b", plain)]
    kinds = [_exact(part) for part in parts]
    if len(parts) > 1 and all(kinds):
        return "findings" if "findings" in kinds else kinds[0]
    if name.isupper() and len(plain) > 6 and plain.isalpha():
        close = difflib.get_close_matches(plain, _OFTEN_MISSPELLED, n=1, cutoff=0.82)
        return _OFTEN_MISSPELLED[close[0]] if close else None
    return None


def _exact(plain: str) -> str | None:
    return next((kind for kind, pattern in _COMPILED.items() if pattern.fullmatch(plain)), None)
