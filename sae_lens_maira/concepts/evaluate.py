"""From an SAE and a recording to tables of concepts: latents first, then every control, each a part that is kept.

A stopped run goes on with the first part that is missing, and ends in the same bytes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from sae_lens_maira.concepts import firings as found_firings
from sae_lens_maira.concepts.choice import Observer, Scored, choose, score
from sae_lens_maira.concepts.directions import (
    Moments,
    both_signs,
    moments,
    principal_components,
    random_directions,
    train_with_frozen_decoder,
)
from sae_lens_maira.concepts.exam import Exam, halves, set_exam
from sae_lens_maira.concepts.feature_sets import FeatureSet, Projections, SparseFeatures, pool_firings
from sae_lens_maira.concepts.per_feature import BestOfEachFeature, EveryScore
from sae_lens_maira.concepts.probes import bag_of_words, dense_probe, length
from sae_lens_maira.concepts.questions import Truth, ask, priors
from sae_lens_maira.concepts.rows import row_of
from sae_lens_maira.concepts.segments import cut
from sae_lens_maira.concepts.settings import ConceptSettings, Control
from sae_lens_maira.concepts.tree import is_phantom, phantom_families, phantom_groups, phantom_topics
from sae_lens_maira.data.study import Study
from sae_lens_maira.errors import ConfigError
from sae_lens_maira.features.firings import folded_copy
from sae_lens_maira.features.recording import Recording
from sae_lens_maira.results import Units

LATENTS = "latents"
EVERY_SCORE = "scores.parquet"


@dataclass(frozen=True, eq=False)
class ConceptSubject:
    """What is scored.

    Args:
        sae: an SAE as SAE-Lens loads it.
        recording: activations at its hook point.
        studies: the recorded studies.
        texts_of: readable texts of token ids.
        n_words: size of the model's vocabulary.
        record_random: records the same studies with random weights; None if that control is not wanted.
    """

    sae: Any
    recording: Recording
    studies: Sequence[Study]
    texts_of: Callable[[Sequence[int]], Sequence[str]]
    n_words: int
    record_random: Callable[[], Recording] | None = None


def questions_of(studies: Sequence[Study], settings: ConceptSettings) -> Truth:
    """Questions and answers of studies, with the tree of the settings, or the phantom's for its labels."""
    labels = [study.labels for study in studies]
    groups: Mapping[str, Sequence[str]] = settings.groups
    families: Mapping[str, Sequence[str]] | None = settings.families or None
    topics: Mapping[str, str] = {}
    if is_phantom({name for known in labels for name in known}):
        topics = phantom_topics()
        if not groups and not families:
            groups, families = phantom_groups(), phantom_families()
    return ask(labels, priors(studies), groups=groups, families=families, topics=topics, uncertain=settings.uncertain)


def make_exam(subject: ConceptSubject, settings: ConceptSettings) -> Exam:
    """Ask every question in every region.

    Raises:
        ConfigError: no question has enough studies of both answers.
    """
    studies = subject.studies
    segments = cut(subject.recording, studies, subject.texts_of)
    truth = questions_of(studies, settings)
    patients = [study.patient_id for study in studies]
    exam = set_exam(
        segments,
        truth,
        segments.about(truth.questions, [[sentence.labels for sentence in study.sentences] for study in studies]),
        patients,
        halves(patients, settings.choice_share, settings.seed),
        regions=settings.regions,
        min_studies=settings.min_studies,
        n_resamples=settings.n_resamples,
        seed=settings.seed,
    )
    if not exam.readings:
        raise ConfigError(
            f"No label of these {len(studies)} studies has {settings.min_studies} positive and negative studies in "
            "each part; give more studies, or a smaller concepts.min_studies."
        )
    return exam


def evaluate(
    subject: ConceptSubject, exam: Exam, settings: ConceptSettings, units: Units, out: Path, show_progress: bool = True
) -> None:
    """Compute every part that is missing.

    Args:
        subject: SAE and recording.
        exam: from :func:`make_exam`.
        settings: what to compute.
        units: where finished parts are kept.
        out: folder of the results, for the table of all scores.
        show_progress: whether to show a progress bar.
    """
    with tempfile.TemporaryDirectory(dir=out, prefix=".scratch-") as scratch:
        sets = _Sets(subject, exam, settings, units, Path(scratch))
        every_score = out / EVERY_SCORE if settings.every_score else None
        bar = tqdm(total=1 + len(settings.controls), desc="feature sets", disable=not show_progress)
        with bar:
            if not units.is_done(LATENTS) or (every_score is not None and not every_score.is_file()):
                units.write(LATENTS, _latents_part(sets, exam, every_score))
            bar.update()
            for name in settings.controls:
                if not units.is_done(name):
                    units.write(name, {"rows": [row_of(scored, exam) for scored in sets.scored(name)]})
                bar.update()


def _latents_part(sets: _Sets, exam: Exam, every_score: Path | None) -> dict[str, Any]:
    latents = sets.latents()
    best = BestOfEachFeature(exam)
    with ExitStack() as stack:
        observers: list[Observer] = [best.add]
        if every_score is not None:
            observers.append(stack.enter_context(EveryScore(every_score, exam)).add)
        picks = choose(latents, exam, observers=observers)
    part: dict[str, Any] = {"rows": [row_of(scored, exam) for scored in score(latents, picks, exam)]}
    part["features"] = {
        name: [_without_resamples(row_of(scored, exam)) for scored in score(latents, own, exam)] if own else []
        for name, own in best.picks.items()
    }
    return {**part, "per_token": sets.per_token, "n_features": latents.n_features}


def _without_resamples(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "resampled"}


class _Sets:
    """Makes the sets of features; each is dropped when its part is done."""

    def __init__(
        self, subject: ConceptSubject, exam: Exam, settings: ConceptSettings, units: Units, scratch: Path
    ) -> None:
        self._subject, self._exam, self._settings = subject, exam, settings
        self._units, self._scratch = units, scratch
        self._moments: Moments | None = None
        self.per_token = 0.0

    def latents(self) -> SparseFeatures:
        """The SAE's latents, in the scale of decoder rows of norm 1."""
        folded = folded_copy(self._subject.sae)
        counted = found_firings.Counted(found_firings.latents(folded, self._subject.recording))
        pooled = self._pooled(counted, int(folded.cfg.d_sae), LATENTS)
        self.per_token = counted.per_token
        return pooled

    def scored(self, name: Control) -> Iterator[Scored]:
        """The chosen features of a control, or its probes, with scores."""
        recording = self._subject.recording
        match name:
            case "bag_of_words":
                yield from bag_of_words(self._words(), self._exam)
            case "length":
                yield from length(self._exam)
            case "dense_probe":
                coordinates = torch.eye(recording.activations(0).shape[1])
                yield from dense_probe(Projections(recording, self._exam.segments, coordinates), self._exam)
            case _:
                features = self._features(name)
                yield from score(features, choose(features, self._exam), self._exam)

    def _features(self, name: Control) -> FeatureSet:
        recording, segments, seed = self._subject.recording, self._exam.segments, self._settings.seed
        d_in, n_features = recording.activations(0).shape[1], int(self._subject.sae.cfg.d_sae)
        match name:
            case "random_projections":
                return Projections(recording, segments, random_directions(d_in, n_features, seed))
            case "random_model":
                assert self._subject.record_random is not None, "the verb records it"
                other = self._subject.record_random()
                return Projections(other, segments, random_directions(d_in, n_features, seed))
            case "coordinates":
                return Projections(recording, segments, both_signs(torch.eye(d_in)))
            case "principal_components":
                return Projections(recording, segments, both_signs(principal_components(self._statistics().covariance)))
            case "random_top_k":
                directions = random_directions(d_in, n_features, seed)
                found = found_firings.top_k(recording, directions, self._statistics().mean, self._k())
                return self._pooled(found, n_features, name)
            case "frozen_decoder":
                trained = train_with_frozen_decoder(
                    recording,
                    self._exam.is_choice,
                    n_features=n_features,
                    k=self._k(),
                    center=self._statistics().mean,
                    n_steps=self._settings.frozen_decoder_steps,
                    seed=seed,
                )
                found = found_firings.top_k(recording, trained.encoder, trained.center, self._k(), trained.bias)
                return self._pooled(found, n_features, name)
            case "words":
                return self._words()
            case _:
                raise AssertionError(f"{name} is no set of features")

    def _words(self) -> SparseFeatures:
        return self._pooled(found_firings.words(self._subject.recording), self._subject.n_words, "words")

    def _pooled(self, firings: Any, n_features: int, name: str) -> SparseFeatures:
        return pool_firings(firings, n_features, self._exam.segments, self._scratch / name)

    def _statistics(self) -> Moments:
        if self._moments is None:
            self._moments = moments(self._subject.recording, self._exam.is_choice)
        return self._moments

    def _k(self) -> int:
        """The number of latents that fire at a token, so that a control's top-k is as sparse as the SAE."""
        return max(round(self._units.read(LATENTS)["per_token"]), 1)
