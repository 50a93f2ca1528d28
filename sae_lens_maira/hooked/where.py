"""Where an edit acts: a choice of positions by what their tokens are, not by their numbers.

    Where()                                               # everywhere: images, template, sections and report
    Where(include=("report",), window=(0, 8))             # the first eight tokens of the report
    Where(include=("everywhere",), exclude=("images",))   # an exclusion always wins

A report's token is edited when the model reads it, so an edit of report token k changes token k + 1 and what follows.
The last token of the prompt is the one that predicts the report's first token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Int

from sae_lens_maira.data.study import IMAGE_KINDS, TokenKind
from sae_lens_maira.errors import SteeringError
from sae_lens_maira.settings import Settings

Place = Literal[
    "everywhere",
    "images",
    "frontal_image",
    "lateral_image",
    "prior_image",
    "sections",
    "indication",
    "technique",
    "comparison",
    "prior_report",
    "template",
    "last_prompt_token",
    "report",
]
PLACES: tuple[Place, ...] = get_args(Place)
_SECTIONS = (TokenKind.INDICATION, TokenKind.TECHNIQUE, TokenKind.COMPARISON, TokenKind.PRIOR_REPORT)
_REPORT = (TokenKind.FINDINGS, TokenKind.END)


@dataclass(frozen=True)
class Where(Settings):
    """Positions at which edits act.

    Args:
        include: places that are edited: ``everywhere``, ``images`` or one of them, ``sections`` or one of them,
            ``template`` (the prompt's boilerplate), ``last_prompt_token`` and ``report``.
        exclude: places that are never edited, whatever ``include`` says.
        window: the report's tokens from the first number up to, not including, the second; null for all of them.
    """

    GROUP = "where."
    ERROR = SteeringError

    include: tuple[Place, ...] = ("everywhere",)
    exclude: tuple[Place, ...] = ()
    window: tuple[int, int] | None = None

    def check(self) -> None:
        if not self.include:
            raise SteeringError("where.include is empty, so that nothing is edited; name a place, such as everywhere.")
        if self.window is not None and not 0 <= self.window[0] < self.window[1]:
            raise SteeringError(
                f"where.window {list(self.window)} holds no token; give the first, and the last plus one: [0, 8]."
            )

    def mask(self, kinds: Int[np.ndarray, " n_tokens"]) -> Bool[np.ndarray, " n_tokens"]:
        """The edited positions of a full prompt, with or without its report; padding never is.

        Args:
            kinds: the kind of each token.
        """
        is_report = np.isin(kinds, _REPORT)
        in_prompt = ~is_report & (kinds != TokenKind.PAD)
        chosen = np.zeros(len(kinds), dtype=bool)
        for places, value in ((self.include, True), (self.exclude, False)):
            for place in places:
                chosen[self._at(place, kinds, is_report, in_prompt)] = value
        if self.window is not None:
            numbers = np.cumsum(is_report) - 1
            chosen &= ~is_report | ((numbers >= self.window[0]) & (numbers < self.window[1]))
        return chosen & (kinds != TokenKind.PAD)

    def edits_report_token(self, number: int) -> bool:
        """Whether the report's token of a number, counted from 0, is edited."""
        chosen = any(place in ("everywhere", "report") for place in self.include)
        chosen &= not any(place in ("everywhere", "report") for place in self.exclude)
        return chosen and (self.window is None or self.window[0] <= number < self.window[1])

    def prompt_mask(self, kinds: Int[np.ndarray, " n_tokens"], study_id: str) -> Bool[np.ndarray, " n_tokens"]:
        """The edited positions of a prompt that is about to be answered.

        Args:
            kinds: the kind of each token of the prompt.
            study_id: for the message.

        Raises:
            SteeringError: nothing is selected, neither in the prompt nor in the report.
        """
        mask = self.mask(kinds)
        first = 0 if self.window is None else self.window[0]
        if not mask.any() and not self.edits_report_token(first):
            raise SteeringError(
                f"{self} selects nothing in study '{study_id}'; include a place that the study has, or exclude less."
            )
        return mask

    def __str__(self) -> str:
        left_out = f" without {', '.join(self.exclude)}" if self.exclude else ""
        window = "" if self.window is None else f", report tokens {self.window[0]} to {self.window[1] - 1}"
        return f"where: {', '.join(self.include)}{left_out}{window}"

    @staticmethod
    def _at(
        place: Place,
        kinds: Int[np.ndarray, " n_tokens"],
        is_report: Bool[np.ndarray, " n_tokens"],
        in_prompt: Bool[np.ndarray, " n_tokens"],
    ) -> Bool[np.ndarray, " n_tokens"]:
        match place:
            case "everywhere":
                return np.ones(len(kinds), dtype=bool)
            case "images":
                return np.isin(kinds, IMAGE_KINDS)
            case "sections":
                return np.isin(kinds, _SECTIONS)
            case "report":
                return is_report
            case "last_prompt_token":
                last = np.zeros(len(kinds), dtype=bool)
                last[np.flatnonzero(in_prompt)[-1:]] = True
                return last
            case _:
                return kinds == TokenKind[place.upper()]
