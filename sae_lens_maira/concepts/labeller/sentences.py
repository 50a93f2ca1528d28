"""Sentences of a report, in the form in which phrases are compared with them."""

from __future__ import annotations

import re
from typing import NamedTuple

_NUMBER = r"(?<!\s\d\.)(?<!\s\d\d\.)(?<!\A\d\.)(?<!\A\d\d\.)"  # of a list: "2. No effusion."
_END = re.compile(rf"(?<=[.!?]){_NUMBER}\s+(?=\S)|\n\s*\n|(?<=\S)\s+(?=\d{{1,2}}\.\s)")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?(?:\.\d+)?|[,;]")


class Sentence(NamedTuple):
    """A sentence: its place in the report, and its words in lower case with single spaces; commas are words too."""

    start: int
    end: int
    words: str


def split_sentences(report: str) -> list[Sentence]:
    """The sentences of a report, in order; text without a word is none.

    Sentences end at a period, a question or exclamation mark that white space follows, at an empty line, and before the
    numbers of a list. A decimal point ends none.
    """
    found: list[Sentence] = []
    start = 0
    for end in [match.start() for match in _END.finditer(report)] + [len(report)]:
        text = report[start:end]
        words = " ".join(_WORD.findall(text.lower()))
        if words.strip(" ,;"):
            first = start + len(text) - len(text.lstrip())
            found.append(Sentence(first, start + len(text.rstrip()), words))
        start = end
    return found
