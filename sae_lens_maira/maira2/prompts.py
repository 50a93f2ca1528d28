"""MAIRA-2's prompts as typed objects, with the exact words it was trained on.

A prompt becomes a list of pieces (text or image) that the checkpoint's chat template joins. Every text carries its
kind, so that each token gets a kind too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sae_lens_maira.data.study import TokenKind
from sae_lens_maira.errors import PromptError
from sae_lens_maira.maira2.images import ImageLike

_TASK = (
    " Provide a structured description of the findings in the radiology study in comparison to the prior frontal image."
)
_GROUNDING = (
    " Each finding should be described as a self-contained plain-text sentence. If the finding is groundable, locate "
    "the finding in the current frontal chest X-ray image, with bounding boxes indicating all locations where it can "
    "be seen in the current frontal image. Otherwise, generate just the ungrounded finding without bounding boxes."
)
_PHRASE_TASK = (
    " Repeat the following finding as a grounded phrase with bounding boxes indicating all locations where it can be "
    "seen in the given chest X-ray image. Finding: "
)

MAX_NEW_TOKENS, MAX_NEW_TOKENS_GROUNDED = 300, 450
"""Longest answers in tokens, as in the official examples."""


@dataclass(frozen=True)
class Text:
    """Text of one kind."""

    text: str
    kind: TokenKind = TokenKind.TEMPLATE


@dataclass(frozen=True, eq=False)
class ImageSlot:
    """A place where an image's placeholder tokens go."""

    image: ImageLike
    kind: TokenKind

    @property
    def name(self) -> str:
        """The image's name in errors: ``frontal image``, ..."""
        return self.kind.name.lower().replace("_", " ")


Piece: TypeAlias = tuple[Text, ...] | ImageSlot
"""One entry of the chat message's content: an image, or the texts that form one string."""


@dataclass(frozen=True, eq=False)
class FindingsPrompt:
    """Ask for the findings of a study.

    Args:
        frontal: the current frontal image.
        lateral: the current lateral image.
        prior: an earlier frontal image of the same patient.
        indication: why the study was requested; empty or None is written ``N/A``, as for every section.
        technique: how the images were taken.
        comparison: the earlier studies to compare with.
        prior_report: the report of the earlier study; used only together with ``prior``.
        grounded: ask for sentences with bounding boxes.
        assistant_text: the report itself, for teacher forcing.

    Raises:
        PromptError: there is no frontal image.
    """

    frontal: ImageLike
    lateral: ImageLike | None = None
    prior: ImageLike | None = None
    indication: str | None = None
    technique: str | None = None
    comparison: str | None = None
    prior_report: str | None = None
    grounded: bool = False
    assistant_text: str | None = None

    def __post_init__(self) -> None:
        if self.frontal is None:
            others = [name for name in ("lateral", "prior") if getattr(self, name) is not None]
            given = f" beside the {' and the '.join(others)} image" if others else ""
            raise PromptError(f"The prompt has no frontal image{given}; MAIRA-2 always needs the current frontal one.")

    @property
    def max_new_tokens(self) -> int:
        """Longest answer in tokens."""
        return MAX_NEW_TOKENS_GROUNDED if self.grounded else MAX_NEW_TOKENS

    def pieces(self) -> list[Piece]:
        """The user message, in order."""
        alone = self.lateral is None and self.prior is None
        pieces: list[Piece] = [
            (Text("Given the current frontal image" + (" only" if alone else "")),),
            ImageSlot(self.frontal, TokenKind.FRONTAL_IMAGE),
        ]
        if self.lateral is not None:
            joint = "" if self.prior is not None else " and"
            pieces += [
                (Text(f"{joint} the current lateral image"),),
                ImageSlot(self.lateral, TokenKind.LATERAL_IMAGE),
            ]
        if self.prior is not None:
            pieces += [
                (Text(" and the prior frontal image"),),
                ImageSlot(self.prior, TokenKind.PRIOR_IMAGE),
                (Text(" PRIOR_REPORT: "), _section(self.prior_report, TokenKind.PRIOR_REPORT)),
            ]
        pieces.append(
            (
                Text(_TASK + (_GROUNDING if self.grounded else "") + " INDICATION: "),
                _section(self.indication, TokenKind.INDICATION),
                Text(" TECHNIQUE: "),
                _section(self.technique, TokenKind.TECHNIQUE),
                Text(" COMPARISON: "),
                _section(self.comparison, TokenKind.COMPARISON),
            )
        )
        return pieces


@dataclass(frozen=True, eq=False)
class PhraseGroundingPrompt:
    """Ask where in the frontal image a finding can be seen.

    Args:
        frontal: the image.
        phrase: the finding, in words.
        assistant_text: the answer, for teacher forcing.

    Raises:
        PromptError: there is no image or no phrase.
    """

    frontal: ImageLike
    phrase: str
    assistant_text: str | None = None

    def __post_init__(self) -> None:
        if self.frontal is None:
            raise PromptError("The prompt has no frontal image; phrase grounding needs one.")
        if not self.phrase:
            raise PromptError("The prompt has no phrase; say which finding is to be located.")

    def pieces(self) -> list[Piece]:
        """The user message, in order."""
        return [
            (Text("Given the current frontal image"),),
            ImageSlot(self.frontal, TokenKind.FRONTAL_IMAGE),
            (Text(_PHRASE_TASK), Text(self.phrase, TokenKind.PHRASE)),
        ]


Prompt: TypeAlias = FindingsPrompt | PhraseGroundingPrompt


def as_batch(prompts: Prompt | Sequence[Prompt] | None) -> list[Prompt]:
    """One prompt or several as a list, each checked to be a prompt.

    Raises:
        PromptError: there is no prompt, or one is of another type.
    """
    batch: list[Any] = list(prompts) if isinstance(prompts, (list, tuple)) else [prompts]
    if not batch:
        raise PromptError("There is no prompt; give at least one.")
    for prompt in batch:
        if not isinstance(prompt, (FindingsPrompt, PhraseGroundingPrompt)):
            raise PromptError(
                f"A prompt is a {type(prompt).__name__}; expected a FindingsPrompt or a PhraseGroundingPrompt, or else "
                "a text as text= with its images=."
            )
    return batch


def _section(text: str | None, kind: TokenKind) -> Text:
    return Text(text or "N/A", kind)
