"""Studies in segments: the smallest parts of a study that a region is made of.

A segment is the last token of an image, the rest of an image, one section of the prompt, or one sentence of the
findings. What a feature does in a segment is pooled once; a region, such as the whole prompt or the findings without
the sentences about one concept, is a set of segments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Integer

from sae_lens_maira.concepts.questions import Question
from sae_lens_maira.concepts.settings import RegionName
from sae_lens_maira.data.study import IMAGE_KINDS, Label, Study, TokenKind
from sae_lens_maira.features.recording import Recording

NO_SENTENCE = -1
_MAX_SENTENCES = 1 << 16
_PROMPT = (
    *(TokenKind.TEMPLATE, TokenKind.INDICATION, TokenKind.TECHNIQUE, TokenKind.COMPARISON, TokenKind.PRIOR_REPORT),
    TokenKind.PHRASE,
)


@dataclass(frozen=True)
class Region:
    """Where a feature is read.

    Args:
        kinds: the tokens' kinds.
        leaves_out_own: whether the sentences about the concept in question are left out.
        ends_only: whether only the last token of each image is read.
    """

    kinds: tuple[TokenKind, ...]
    leaves_out_own: bool = False
    ends_only: bool = False


REGIONS: dict[RegionName, Region] = {
    "images": Region(IMAGE_KINDS),
    "image_ends": Region(IMAGE_KINDS, ends_only=True),
    "indication": Region((TokenKind.INDICATION,)),
    "technique": Region((TokenKind.TECHNIQUE,)),
    "comparison": Region((TokenKind.COMPARISON,)),
    "prior_report": Region((TokenKind.PRIOR_REPORT,)),
    "prompt": Region(_PROMPT),
    "findings": Region((TokenKind.FINDINGS,)),
    "findings_elsewhere": Region((TokenKind.FINDINGS,), leaves_out_own=True),
}
"""``image_ends`` are the last tokens of the images, which have attended to all of them; ``prompt`` is all text in front
of the findings; ``findings_elsewhere`` are the other sentences of the findings.
"""


@dataclass(frozen=True, eq=False)
class Segments:
    """Segments of recorded studies, in the order of the studies.

    Args:
        of_token: the segment of each recorded token.
        study: the recorded study of each segment.
        kind: kind of its tokens.
        sentence: number of the sentence within the study's findings, 0 for the last token of an image; -1 otherwise.
        n_tokens: its number of tokens.
    """

    of_token: Int[np.ndarray, " n_tokens"]
    study: Int[np.ndarray, " n_segments"]
    kind: Int[np.ndarray, " n_segments"]
    sentence: Int[np.ndarray, " n_segments"]
    n_tokens: Int[np.ndarray, " n_segments"]

    @property
    def n_segments(self) -> int:
        return len(self.study)

    def of_region(self, region: Region) -> Bool[np.ndarray, " n_segments"]:
        """Mask of a region's segments; sentences about a question's own concepts are not left out yet."""
        mask = np.isin(self.kind, region.kinds)
        return mask & (self.sentence != NO_SENTENCE) if region.ends_only else mask

    def about(
        self, questions: Sequence[Question], labels_of_sentences: Sequence[Sequence[Mapping[str, Label]]]
    ) -> Bool[np.ndarray, "n_segments n_questions"]:
        """Which segments are sentences that say something about each question's concepts.

        Args:
            questions: the questions.
            labels_of_sentences: the labels of each sentence of each recorded study.
        """
        mentioned = np.zeros((self.n_segments, len(questions)), dtype=bool)
        columns: dict[str, list[int]] = {}
        for column, question in enumerate(questions):
            for member in question.members:
                columns.setdefault(member, []).append(column)
        for segment in np.flatnonzero((self.kind == TokenKind.FINDINGS) & (self.sentence != NO_SENTENCE)):
            for name in labels_of_sentences[self.study[segment]][self.sentence[segment]]:
                mentioned[segment, columns.get(name, [])] = True
        return mentioned


def cut(recording: Recording, studies: Iterable[Study], texts_of: Callable[[Sequence[int]], Sequence[str]]) -> Segments:
    """Cut recorded studies into segments.

    Args:
        recording: the studies' tokens.
        studies: the recorded studies, in the same order.
        texts_of: the readable texts of token ids, which put together are the findings again.
    """
    sentence = np.full(recording.n_tokens, NO_SENTENCE, dtype=np.int64)
    sentence[_image_ends(recording)] = 0
    for number, study in enumerate(studies):
        if study.sentences:
            own = recording.tokens(number)
            findings = own.start + np.flatnonzero(recording.kinds[own] == TokenKind.FINDINGS)
            texts = texts_of(recording.token_ids[findings].tolist())
            sentence[findings] = sentence_of_token(texts, study)
    kinds = recording.kinds.astype(np.int64)
    key = (recording.study_of_token * len(TokenKind) + kinds) * _MAX_SENTENCES + sentence + 1
    segments, of_token, n_tokens = np.unique(key, return_inverse=True, return_counts=True)
    rest, sentence_number = segments // _MAX_SENTENCES, segments % _MAX_SENTENCES - 1
    return Segments(of_token.reshape(-1), rest // len(TokenKind), rest % len(TokenKind), sentence_number, n_tokens)


def _image_ends(recording: Recording) -> Integer[np.ndarray, " n"]:
    """The last token of every image; a row's first token is that of its frontal image."""
    is_image = np.isin(recording.kinds, IMAGE_KINDS) & (recording.kinds != TokenKind.FRONTAL_IMAGE)
    key = recording.study_of_token * len(TokenKind) + recording.kinds
    tokens = np.flatnonzero(is_image)
    is_last = np.append(np.diff(key[tokens]) != 0, True)[: len(tokens)]
    return np.concatenate([np.flatnonzero(recording.positions == 0), tokens[is_last]])


def sentence_of_token(texts: Sequence[str], study: Study) -> Integer[np.ndarray, " n_tokens"]:
    """The number of the sentence that each token of the findings belongs to.

    All are -1 if the texts of the tokens are not those of the findings, as for characters that a tokenizer replaces.
    A row that was cut short has the beginning of the findings.
    """
    text = "".join(texts)
    n_spaces = len(text) - len(text.lstrip())
    if not texts or not (study.findings or "").lstrip().startswith(text[n_spaces:].rstrip()):
        return np.full(len(texts), NO_SENTENCE, dtype=np.int64)
    n_spaces -= len(study.findings or "") - len((study.findings or "").lstrip())
    lasts = np.cumsum([len(part) for part in texts]) - 1 - n_spaces
    starts = np.array([sentence.start for sentence in study.sentences])
    order = np.argsort(starts)
    found = np.searchsorted(starts[order], lasts, side="right") - 1
    return np.where(found < 0, NO_SENTENCE, order[np.maximum(found, 0)])
