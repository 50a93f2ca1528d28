"""Prompts to text, text to tokens, and what each token is.

1. The checkpoint's chat template joins the pieces of a prompt.
2. Each piece is found again in the result, so every character gets a kind; placeholders are repeated per image token.
3. The tokenizer's character offsets carry the kinds over to the tokens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from sae_lens_maira.data.study import TokenKind, find_unwritable
from sae_lens_maira.errors import CheckpointError, PromptError, quoted
from sae_lens_maira.maira2.grounding import GROUNDING_TOKENS
from sae_lens_maira.maira2.prompts import ImageSlot, PhraseGroundingPrompt, Piece, Prompt, Text

_GROUNDING_TOKEN = re.compile("|".join(GROUNDING_TOKENS))


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt as one string, with one placeholder per image, and the kind of each character."""

    text: str
    character_kinds: Int[np.ndarray, " n_characters"]

    def expand_images(self, placeholder: str, n_image_tokens: int) -> RenderedPrompt:
        """Repeat each placeholder as often as an image has tokens."""
        parts: list[str] = []
        kinds: list[np.ndarray] = []
        start = 0
        while (found := self.text.find(placeholder, start)) >= 0:
            stop = found + len(placeholder)
            parts += [self.text[start:found], placeholder * n_image_tokens]
            kinds += [
                self.character_kinds[start:found],
                np.tile(self.character_kinds[found:stop], n_image_tokens),
            ]
            start = stop
        parts.append(self.text[start:])
        kinds.append(self.character_kinds[start:])
        return RenderedPrompt("".join(parts), np.concatenate(kinds))


def render_prompt(prompt: Prompt, tokenizer: Any, chat_template: str | None, placeholder: str) -> RenderedPrompt:
    """Render a prompt by the checkpoint's chat template and mark every character with its kind.

    Args:
        prompt: the prompt, with an assistant text for teacher forcing.
        tokenizer: renders the template; its end-of-sequence token closes an assistant text.
        chat_template: the checkpoint's; the tokenizer's if None.
        placeholder: the image token, ``<image>``.

    Raises:
        PromptError: a text contains a special token, or a grounding token where none belongs.
        CheckpointError: the template drops or changes a piece.
    """
    pieces = prompt.pieces()
    answer = prompt.assistant_text
    _check_texts(prompt, tokenizer)
    messages: list[dict[str, Any]] = [{"role": "user", "content": _chat_content(pieces)}]
    if answer is not None:
        content = {"index": None, "text": answer, "type": "text"}
        messages.append({"role": "assistant", "content": [content]})
    text = tokenizer.apply_chat_template(
        messages, chat_template=chat_template, tokenize=False, add_generation_prompt=answer is None
    )
    kinds = np.full(len(text), TokenKind.TEMPLATE, dtype=np.int64)
    cursor = 0
    for piece in pieces:
        if isinstance(piece, ImageSlot):
            start = _found(text.find(placeholder, cursor), placeholder)
            cursor = start + len(placeholder)
            kinds[start:cursor] = piece.kind
            continue
        cursor = _mark_piece(kinds, piece, text, cursor)
    if answer is not None:
        end = text.rfind(tokenizer.eos_token, cursor)
        words = answer.strip()
        # The last one, as short findings may also be part of the template: "A" of "ASSISTANT:".
        start = _found(text.rfind(words, cursor, len(text) if end < 0 else end), words)
        kinds[start : start + len(words)] = TokenKind.FINDINGS
        if end >= 0:
            kinds[end : end + len(tokenizer.eos_token)] = TokenKind.END
    return RenderedPrompt(text, kinds)


def token_kinds(
    character_kinds: Int[np.ndarray, " n_characters"], offsets: list[tuple[int, int]]
) -> Int[np.ndarray, " n_tokens"]:
    """Give each token the kind of the characters that it covers.

    A token that covers several kinds (a space of the template and the first letters of a section) gets the kind of
    its last character. A token that covers nothing (begin of sequence) is template.
    """
    kinds = np.full(len(offsets), TokenKind.TEMPLATE, dtype=np.int64)
    for position, (start, stop) in enumerate(offsets):
        if stop > start:
            kinds[position] = character_kinds[stop - 1]
    return kinds


def _chat_content(pieces: list[Piece]) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = []
    n_images = 0
    for piece in pieces:
        if isinstance(piece, ImageSlot):
            content.append({"index": n_images, "text": None, "type": "image"})
            n_images += 1
        else:
            content.append({"index": None, "text": "".join(part.text for part in piece), "type": "text"})
    return content


def _mark_piece(kinds: np.ndarray, piece: tuple[Text, ...], text: str, cursor: int) -> int:
    """Mark the texts of a piece, which stand one after another, and return where it ends."""
    whole = "".join(part.text for part in piece)
    words = whole.strip()
    place = _found(text.find(words, cursor), words) - (len(whole) - len(whole.lstrip()))
    for part in piece:
        start = place + len(part.text) - len(part.text.lstrip())
        kinds[max(start, cursor) : start + len(part.text.strip())] = part.kind
        place += len(part.text)
    return place - (len(whole) - len(whole.rstrip()))


def _check_texts(prompt: Prompt, tokenizer: Any) -> None:
    """Refuse what the tokenizer would not read as text: it would stand for an image, a box or the prompt's end."""
    texts = [part for piece in prompt.pieces() if not isinstance(piece, ImageSlot) for part in piece]
    may_be_grounded = isinstance(prompt, PhraseGroundingPrompt) or prompt.grounded
    if prompt.assistant_text is not None:
        texts.append(Text(prompt.assistant_text, TokenKind.FINDINGS))
    specials = tokenizer.all_special_tokens
    for part in texts:
        field = part.kind.name.lower().replace("_", " ")
        if find_unwritable(part.text) is not None:
            raise PromptError(f"The {field} text holds half of a surrogate pair, which is no character; remove it.")
        for special in specials:
            if special in part.text:
                raise PromptError(f"The {field} text contains the special token '{special}'; remove it.")
        grounding = _GROUNDING_TOKEN.search(part.text)
        if grounding is not None and not (part.kind is TokenKind.FINDINGS and may_be_grounded):
            raise PromptError(
                f"The {field} text contains the grounding token '{grounding[0]}', which only a grounded answer has; "
                "remove it."
            )


def _found(start: int, words: str) -> int:
    if start < 0:
        raise CheckpointError(
            f"The checkpoint's chat template drops or changes {quoted(words, 60)}; it is not MAIRA-2's."
        )
    return start
