"""A tokenizer with a readable vocabulary, in which sae-dashboard and SAE-Lens look tokens up.

A Llama vocabulary shows spaces as ``▁`` and bytes as ``<0x0A>``, and has no entries for study tokens and images.
sae-dashboard reads ``tokenizer.vocab.items()`` and shows ids that are missing there as UNK.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any

from sae_lens_maira.data.study import IMAGE_KINDS
from sae_lens_maira.rows.row import RowVocabulary

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


_IMAGE_NAMES = tuple(f"<{kind.name.lower().removesuffix('_image')}>" for kind in IMAGE_KINDS)


class ReadableVocabulary(dict[str, int]):
    """The tokenizer's vocabulary as a mapping; its items are readable and include the ids of rows.

    Several ids may share a text (every study token is ``<frontal>``), so :meth:`items` yields more pairs than there
    are keys.
    """

    def __init__(self, tokenizer: Any, rows: RowVocabulary, n_study_tokens: Callable[[], int]) -> None:
        super().__init__(tokenizer.get_vocab())
        self._rows = rows
        self._n_study_tokens = n_study_tokens
        self._pad_token_id: int | None = tokenizer.pad_token_id

    def items(self) -> Iterator[tuple[str, int]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        for token_id, text in self._texts.items():
            yield text, token_id
        for token_id in range(len(self), self._rows.d_vocab):
            yield f"<unused {token_id}>", token_id
        for kind, name in zip(IMAGE_KINDS, _IMAGE_NAMES, strict=True):
            yield name, self._rows.image_token(kind)
        for index in range(self._n_study_tokens()):
            yield "<frontal>", self._rows.study_token(index)

    def text_of(self, token_id: int) -> str:
        """Readable text of one id of a row."""
        if token_id >= self._rows.study_token(0):
            return "<frontal>"
        if token_id >= self._rows.d_vocab:
            return _IMAGE_NAMES[token_id - self._rows.d_vocab]
        return self._texts.get(token_id, f"<unused {token_id}>")

    @cached_property
    def _texts(self) -> dict[int, str]:
        texts = {token_id: readable(token) for token, token_id in super().items()}
        if self._pad_token_id is not None:
            texts[self._pad_token_id] = "<pad>"  # MAIRA-2 pads with <unk>
        return texts


class ReadableTokenizer:
    """A tokenizer that also reads rows; everything else is delegated to the wrapped tokenizer.

    Args:
        tokenizer: the checkpoint's tokenizer.
        rows: the token ids of rows.
        n_study_tokens: returns the number of study tokens.
    """

    def __init__(self, tokenizer: Any, rows: RowVocabulary, n_study_tokens: Callable[[], int] = lambda: 0) -> None:
        self._tokenizer = tokenizer
        self.vocab = ReadableVocabulary(tokenizer, rows, n_study_tokens)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_tokenizer":
            raise AttributeError(name)
        return getattr(self._tokenizer, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._tokenizer(*args, **kwargs)

    def __len__(self) -> int:
        return len(self._tokenizer)

    def row_to_texts(self, tokens: Iterable[int]) -> list[str]:
        """Readable texts of a row's tokens."""
        return [self.vocab.text_of(int(token)) for token in tokens]


def readable(token: str) -> str:
    """A vocabulary entry in readable form: spaces as spaces, bytes as their character or hexadecimal value."""
    match = _BYTE.fullmatch(token)
    if match is None:
        return token.replace("▁", " ")
    value = int(match[1], 16)
    return (
        chr(value) if 32 <= value < 127 else f"\\x{value:02x}" if value not in (9, 10, 13) else repr(chr(value))[1:-1]
    )
