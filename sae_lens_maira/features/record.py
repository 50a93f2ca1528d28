"""The data about one feature that explainers, scorers and people read (after delphi's ``LatentRecord``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from sae_lens_maira.data.study import SECTION_KINDS, VIEWS, LazyImage, SectionName, Study, TokenKind, View
from sae_lens_maira.features.recording import Recording
from sae_lens_maira.features.sparse import row
from sae_lens_maira.features.subject import Subject
from sae_lens_maira.features.table import FeatureTable

_SECTION_OF_KIND: dict[TokenKind, SectionName] = {kind: name for name, kind in SECTION_KINDS.items()}


@dataclass(frozen=True, eq=False)
class Example:
    """One study, and how strongly one feature fires at each of its tokens.

    Args:
        study_index: index of the study in the source.
        study_id: the study's name in the source.
        texts: readable text of each token.
        activations: the feature's activation at each token, scaled to decoder rows of norm 1; 0 where it does not fire.
        kinds: kind of each token.
        images: the study's images; none is read before it is opened.
        has_prior: whether the study has a prior image or a prior report.
        shareable: whether its images and text may leave the machine.
    """

    study_index: int
    study_id: str
    texts: list[str]
    activations: Float[np.ndarray, " n_tokens"]
    kinds: list[TokenKind]
    images: Mapping[View, LazyImage]
    has_prior: bool
    shareable: bool

    @property
    def sections(self) -> list[SectionName | None]:
        """The section that each token belongs to; None for tokens of images and of the prompt's fixed text."""
        return [_SECTION_OF_KIND.get(kind) for kind in self.kinds]

    @property
    def maximum(self) -> float:
        """The feature's strongest activation in the study."""
        return float(self.activations.max(initial=0.0))


@dataclass(frozen=True, eq=False)
class FeatureRecord:
    """One feature in the studies where it is strongest, and in studies where it is silent.

    Args:
        feature: its number in the SAE.
        examples: strongest first.
        silent: studies where the feature does not fire at any token.
    """

    feature: int
    examples: list[Example]
    silent: list[Example]


def feature_record(
    subject: Subject,
    table: FeatureTable,
    feature: int,
    studies: Sequence[Study],
    *,
    shown: Bool[np.ndarray, " n_studies"] | None = None,
    n_silent: int = 8,
    seed: int = 0,
) -> FeatureRecord:
    """Collect the data about one feature.

    Args:
        subject: the SAE, its model and the recording.
        table: statistics computed from them; the examples are those of the table.
        feature: the feature's number in the SAE.
        studies: the source, read by index.
        shown: mask of the recorded studies that silent examples may be drawn from; all if None. The examples of the
            table were chosen with the mask that it was computed with.
        n_silent: number of silent examples, fewer if there are fewer.
        seed: seed of the random draw of silent examples; each feature has its own draw.
    """
    recording = subject.recording
    fires = np.zeros(recording.n_studies, dtype=bool)
    fires[recording.study_of_token[row(table.by_feature, feature)[0]]] = True
    silent = np.flatnonzero(~fires if shown is None else ~fires & shown)
    drawn = np.random.default_rng([seed, feature]).permutation(silent)[:n_silent]
    strongest = [study for study in table.examples[feature].tolist() if study >= 0]

    def example(study: int) -> Example:
        return _example(subject, table, feature, study, studies[int(recording.studies[study])])

    return FeatureRecord(feature, [example(s) for s in strongest], [example(s) for s in sorted(drawn.tolist())])


def firings_in_study(
    table: FeatureTable, recording: Recording, feature: int, study: int
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Where a feature fires in a recorded study (positions in its row), and how strongly."""
    place = recording.tokens(study)
    tokens, values = row(table.by_feature, feature)
    first, last = np.searchsorted(tokens, [place.start, place.stop])
    return tokens[first:last] - place.start, values[first:last]


def _example(subject: Subject, table: FeatureTable, feature: int, number: int, study: Study) -> Example:
    recording = subject.recording
    place = recording.tokens(number)
    positions, values = firings_in_study(table, recording, feature, number)
    activations = np.zeros(place.stop - place.start, dtype=np.float32)
    activations[positions] = values
    images: dict[View, LazyImage | None] = {view: getattr(study, view) for view in VIEWS}
    return Example(
        study_index=int(recording.studies[number]),
        study_id=study.study_id,
        texts=subject.model.tokenizer.row_to_texts(recording.token_ids[place].tolist()),
        activations=activations,
        kinds=[TokenKind(kind) for kind in recording.kinds[place].tolist()],
        images={view: image for view, image in images.items() if image is not None},
        has_prior=study.prior_frontal is not None or study.prior_report is not None,
        shareable=study.shareable,
    )
