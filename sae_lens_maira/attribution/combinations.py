"""Every combination of a study's own and swapped sources, and what all features are in each.

1. The images of the study and of its replacement are embedded once.
2. The texts of every combination of swapped texts are tokenized once.
3. For every combination of images, the tokens that all texts share (nearly all of the prompt) are run once, and the
   rest of all texts in one batch after them.
4. All features are read in the same pass.

Tokens must correspond between combinations, although texts differ in length. So a feature is read at three *places*
that every combination has:

- ``last_prompt``: the last token of the prompt, before the report's first word. The report cannot have an effect here.
- ``request``: the largest value over the tokens of indication, technique and comparison.
- ``findings``: the largest value over all tokens that predict a word of the report: the last one of the prompt, and
  those of the report. Here the report's earlier words, and the word at the token itself, are the source ``report``.

The value is the pre-activation, scaled by the norm of the feature's decoder row: it equals the activation where the
feature fires and goes on below the threshold, where a JumpReLU's activation is a constant 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_maira.attribution.reading import FeatureReader
from sae_lens_maira.attribution.swaps import Replacement, Source, sources_of, views_of, with_texts
from sae_lens_maira.data.study import Study, TokenKind, View
from sae_lens_maira.hooked.embedded import SharedPrefix, blank_images, embed_images, embed_prompt
from sae_lens_maira.vlm import TokenIds, VisionLanguageModel

PlaceName = Literal["last_prompt", "request", "findings"]
PLACES: tuple[PlaceName, ...] = get_args(PlaceName)
_REQUEST = (TokenKind.INDICATION, TokenKind.TECHNIQUE, TokenKind.COMPARISON)
_TEXT_SOURCES: tuple[Source, ...] = ("prior_report", "prompt", "report")
ImageEmbeddings = Mapping[View, Tensor]
"""Embeddings of (n_image_tokens, d_model) of each image."""


@dataclass(frozen=True)
class Game:
    """One study's features for every combination of its own and swapped sources.

    Args:
        sources: the study's sources; bit i of a combination's number says whether source i is the study's own.
        values: of every combination, at every place of :data:`PLACES`.
        fires: whether each feature fires at each place when nothing is swapped.
    """

    sources: tuple[Source, ...]
    values: Float[np.ndarray, "n_combinations n_places n_features"]
    fires: Bool[np.ndarray, "n_places n_features"]


@torch.no_grad()
def play(reader: FeatureReader, study: Study, replacement: Replacement) -> Game:
    """Run all combinations of a study's sources.

    Args:
        reader: reads the features.
        study: the study.
        replacement: what its sources are swapped for.
    """
    sources = sources_of(study)
    own, other = embed_both(reader.vlm, study, replacement)
    text_sources: list[Source] = [source for source in sources if source in _TEXT_SOURCES]
    image_sources: list[Source] = [source for source in sources if source not in _TEXT_SOURCES]
    texts = {swapped: _encode_swapped(reader.vlm, study, replacement, swapped) for swapped in _subsets(text_sources)}
    values = np.zeros((2 ** len(sources), len(PLACES), reader.n_features + reader.n_controls), dtype=np.float32)
    fires = np.zeros(values.shape[1:], dtype=bool)
    for swapped in _subsets(image_sources):
        views = {view for source in swapped for view in views_of(source, study)}
        images: dict[View, Tensor] = {view: (other if view in views else own)[view] for view in own}
        for swapped_texts, hidden, where in _run_texts(reader, texts, images):
            number = sum(1 << i for i, name in enumerate(sources) if name not in (*swapped, *swapped_texts))
            values[number] = np.stack([reader.largest(hidden[at]).cpu().numpy() for at in where])
            if number == len(values) - 1:
                fires = np.stack([reader.fires(hidden[at]).cpu().numpy() for at in where])
    return Game(sources, values, fires)


def embed_both(
    vlm: VisionLanguageModel, study: Study, replacement: Replacement
) -> tuple[dict[View, Tensor], dict[View, Tensor]]:
    """Embeddings of a study's own images, and of what they are swapped for: each image is opened once."""
    donors = {id(donor): donor for donor in replacement.images.values() if donor is not None}
    blanks = [study] if None in replacement.images.values() else []
    studies = [study, *donors.values(), *blanks]
    inputs = [vlm.processor.images(opened) for opened in (study, *donors.values())]
    inputs += [blank_images(vlm, blank) for blank in blanks]
    embedded = embed_images(vlm, studies, inputs)
    by_donor = dict(zip(donors, embedded[1:], strict=False))
    blank = embedded[-1]
    other: dict[View, Tensor] = {
        view: blank[view] if donor is None else by_donor[id(donor)][view] for view, donor in replacement.images.items()
    }
    return embedded[0], other


def encode(vlm: VisionLanguageModel, study: Study) -> tuple[TokenIds, TokenIds]:
    """Token ids and kinds of a prompt with the report, or of the prompt alone if there is no report."""
    return vlm.processor.encode(study, "findings" if study.findings else "prompt")


def _encode_swapped(
    vlm: VisionLanguageModel, study: Study, replacement: Replacement, swapped: tuple[Source, ...]
) -> tuple[TokenIds, TokenIds]:
    """A prompt with swapped texts. Without a report it ends with the last token of the prompt, cut off from the study's
    own: a tokenizer may write the end of the prompt differently when a report follows."""
    is_cut = "report" in swapped and not replacement.texts.get("findings")
    kept: tuple[Source, ...] = tuple(source for source in swapped if source != "report") if is_cut else swapped
    ids, kinds = encode(vlm, with_texts(study, replacement, kept))
    stop = int(place_positions(kinds)[0][0]) + 1 if is_cut else len(ids)
    return ids[:stop], kinds[:stop]


def place_positions(kinds: Int[np.ndarray, " n_tokens"]) -> list[Int[np.ndarray, " _"]]:
    """The positions of each of :data:`PLACES` in a prompt."""
    findings = np.flatnonzero(kinds == TokenKind.FINDINGS)
    last = int(findings[0]) - 1 if len(findings) else len(kinds) - 1
    return [np.array([last]), np.flatnonzero(np.isin(kinds, _REQUEST)), np.concatenate([[last], findings])]


def _run_texts(
    reader: FeatureReader,
    texts: Mapping[tuple[Source, ...], tuple[TokenIds, TokenIds]],
    images: ImageEmbeddings,
) -> list[tuple[tuple[Source, ...], Tensor, list[Tensor]]]:
    """The activations of all texts after the same images: swapped sources, activations, and positions of places."""
    prompts = [embed_prompt(reader.vlm, encoded, images) for encoded in texts.values()]
    n_shared = shared_length([ids for ids, _ in texts.values()])
    prefix = SharedPrefix(reader.vlm, reader.place, prompts[0].embeddings[:n_shared])
    rests = [prompt.embeddings[n_shared:] for prompt in prompts]
    lengths = [len(rest) for rest in rests]
    found = prefix.continue_with(torch.nn.utils.rnn.pad_sequence(rests, batch_first=True), lengths)
    return [
        (
            swapped,
            torch.cat([prefix.shared, rest[:length]]),
            [torch.as_tensor(at, device=rest.device) for at in place_positions(kinds)],
        )
        for (swapped, (_, kinds)), rest, length in zip(texts.items(), found, lengths, strict=True)
    ]


def shared_length(ids: Sequence[Int[np.ndarray, " _"]]) -> int:
    """Number of leading tokens that all prompts share; at least one token of each is left over."""
    n_shared = min(len(own) for own in ids) - 1
    for own in ids[1:]:
        differs = np.flatnonzero(own[:n_shared] != ids[0][:n_shared])
        n_shared = int(differs[0]) if len(differs) else n_shared
    return n_shared


def _subsets(sources: Sequence[Source]) -> list[tuple[Source, ...]]:
    return [
        tuple(source for bit, source in enumerate(sources) if number >> bit & 1) for number in range(2 ** len(sources))
    ]
