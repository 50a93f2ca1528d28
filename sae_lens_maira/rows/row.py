"""Compact rows: a study as a short row of tokens that SAE-Lens can shuffle, batch and replay.

A study's full prompt has about 1,400 tokens per image plus text; sparse autoencoders train on few of them. A row is

    [study token] [kept token] [kept token] ... [pad] ... [pad]

1. The study token identifies the study, from which the model rebuilds the full multimodal input. It also stands for the
   last token of the frontal image.
2. The kept tokens are real token ids in the order of the prompt, chosen by a :class:`TokenPolicy`. Placeholders of
   images share one id in a prompt; in a row each image has its own id, so that they can be distinguished and shown.
3. Each token of a row knows its position in the full prompt; padding has position -1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from sae_lens_maira.data.study import IMAGE_KINDS, Study, TokenKind
from sae_lens_maira.errors import RowError, quoted
from sae_lens_maira.rows.policy import TokenPolicy
from sae_lens_maira.vlm import StudyProcessor, TokenIds

PAD_POSITION = -1


@dataclass(frozen=True)
class RowVocabulary:
    """Token ids of rows: the model's, then one for each image, then one for each study.

    Args:
        d_vocab: size of the model's vocabulary.
    """

    d_vocab: int

    def image_token(self, kind: TokenKind) -> int:
        """The token id of an image, given the kind of its tokens."""
        return self.d_vocab + IMAGE_KINDS.index(kind)

    def study_token(self, index: int) -> int:
        """The id of the study at an index of the source."""
        return self.d_vocab + len(IMAGE_KINDS) + index

    def study_index(self, token: int) -> int:
        """The inverse of :meth:`study_token`; negative for other tokens."""
        return token - self.d_vocab - len(IMAGE_KINDS)


@dataclass(frozen=True)
class CompactRow:
    """One study's row, without padding."""

    tokens: Int[np.ndarray, " n_kept"]
    positions: Int[np.ndarray, " n_kept"]
    """Position of each token in the full prompt."""
    kinds: Int[np.ndarray, " n_kept"]
    prompt_kinds: Int[np.ndarray, " n_tokens"] | None = None
    """Kind of every token of the full prompt, kept or not; None if it was not wanted."""

    def padded(self, context_size: int, pad_token_id: int) -> CompactRow:
        """Cut or pad to a fixed length."""

        def fit(values: np.ndarray, filler: int) -> np.ndarray:
            cut = values[:context_size]
            return np.pad(cut, (0, context_size - len(cut)), constant_values=filler)

        return CompactRow(
            fit(self.tokens, pad_token_id), fit(self.positions, PAD_POSITION), fit(self.kinds, TokenKind.PAD)
        )


def encode_study(study: Study, processor: StudyProcessor, policy: TokenPolicy) -> tuple[TokenIds, TokenIds]:
    """A study's full prompt as token ids and kinds; no image is opened.

    Raises:
        RowError: the study's text cannot be encoded.
    """
    if policy.text == "findings" and not study.findings:
        raise RowError(f"Study '{study.study_id}' has no findings; leave it out, or use TokenPolicy(text='prompt').")
    if (name := study.unwritable) is not None:
        raise RowError(
            f"The {name} of study {quoted(study.study_id)} holds half of a surrogate pair, which is no character; "
            "remove it."
        )
    try:
        return processor.encode(study, policy.text)
    except RowError:
        raise
    except ValueError as error:
        raise RowError(f"Study '{study.study_id}': {error}") from error


def compact_row(
    ids: Int[np.ndarray, " n_tokens"],
    kinds: Int[np.ndarray, " n_tokens"],
    policy: TokenPolicy,
    vocabulary: RowVocabulary,
    study_index: int,
) -> CompactRow:
    """The tokens that the policy keeps, with the study token in the place of the frontal image's last token."""
    prompt_kinds = kinds
    kept = policy.keeps(kinds)
    frontal_last = int(np.flatnonzero(kinds == TokenKind.FRONTAL_IMAGE)[-1])
    kept[frontal_last] = False
    positions = np.concatenate([[frontal_last], np.flatnonzero(kept)])
    tokens, kinds = ids[positions].copy(), kinds[positions]
    for kind in IMAGE_KINDS:
        tokens[kinds == kind] = vocabulary.image_token(kind)
    tokens[0] = vocabulary.study_token(study_index)
    return CompactRow(tokens, positions, kinds, prompt_kinds)


def smallest_context(policy: TokenPolicy, n_image_tokens: int) -> int:
    """Number of tokens that a row needs for the study token, the images and one token of text."""
    n_images = len(IMAGE_KINDS)
    fixed = {"none": 1, "last": n_images, "all": n_images * n_image_tokens}[policy.image_tokens]
    return fixed + 1
