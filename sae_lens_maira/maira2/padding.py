"""Rows of different lengths as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sae_lens_maira.errors import PromptError

PaddingSide = Literal["left", "right"]
Padding = bool | Literal["longest", "max_length", "do_not_pad"] | None


def padded_width(lengths: Sequence[int], padding: Padding, max_length: int | None) -> int:
    """The width of a batch after padding.

    Args:
        lengths: the rows' lengths.
        padding: as for transformers' tokenizers: to the longest row, to ``max_length``, or none at all.
        max_length: the longest row that is allowed.

    Raises:
        PromptError: a row is too long, or rows differ in length and must not be padded.
    """
    longest = max(lengths)
    if max_length is not None and longest > max_length:
        raise PromptError(
            f"A prompt has {longest} tokens, more than max_length {max_length}; shorten a section: nothing gets cut."
        )
    if padding == "max_length":
        if max_length is None:
            raise PromptError("padding='max_length' needs max_length, the number of tokens to pad to.")
        return max_length
    if padding in (False, None, "do_not_pad") and min(lengths) != longest:
        raise PromptError(f"The prompts have {min(lengths)} to {longest} tokens; padding=True makes one batch of them.")
    if padding not in (True, False, None, "longest", "do_not_pad"):
        raise PromptError(f"padding={padding!r} is unknown; use True, False, 'longest', 'max_length' or 'do_not_pad'.")
    return longest


def pad_rows(
    rows: list[np.ndarray], value: int, side: PaddingSide, width: int | None = None
) -> Int[Tensor, "batch sequence"]:
    """Stack rows of different lengths, and pad the shorter ones on one side.

    Args:
        rows: token ids or kinds of each row.
        value: the padding value.
        side: the side to pad.
        width: the batch's width; the longest row's if None.
    """
    width = max(len(row) for row in rows) if width is None else width
    padded = torch.full((len(rows), width), int(value), dtype=torch.long)
    for target, row in zip(padded, rows, strict=True):
        target[slice(0, len(row)) if side == "right" else slice(width - len(row), width)] = torch.from_numpy(row)
    return padded


def pad_texts(rows: Sequence[Sequence[int]], pad_token_id: int, side: PaddingSide, width: int) -> dict[str, Tensor]:
    """Token ids of texts as ``input_ids`` and ``attention_mask``."""
    ids = [np.array(row, dtype=np.int64) for row in rows]
    return {
        "input_ids": pad_rows(ids, pad_token_id, side, width),
        "attention_mask": pad_rows([np.ones_like(row) for row in ids], 0, side, width),
    }
