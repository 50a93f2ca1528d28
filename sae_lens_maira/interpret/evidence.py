"""Everything that explanations and scores are made from: the corpus, three disjoint sets of patients, and examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from scipy.sparse import csc_array, csr_array

from sae_lens_maira.activations.live import LiveActivations, StudyProgress
from sae_lens_maira.data.study import Study
from sae_lens_maira.errors import InterpretError
from sae_lens_maira.features.firings import folded_copy
from sae_lens_maira.features.recording import record
from sae_lens_maira.features.subject import Subject
from sae_lens_maira.hooked import HookedVisionLanguageModel
from sae_lens_maira.interpret.corpus import Corpus, build_corpus
from sae_lens_maira.interpret.counterfactuals import Counterfactual, without_concepts
from sae_lens_maira.interpret.examples import ExampleFinder
from sae_lens_maira.interpret.random_directions import RandomDirections
from sae_lens_maira.interpret.rules import STRONG, RuleFinder, relative_activations
from sae_lens_maira.interpret.settings import InterpretSettings
from sae_lens_maira.measures.splits import split_patients

PARTS = ("explain", "choose", "score")


@dataclass(frozen=True)
class Evidence:
    """One SAE's units, split by patient.

    Args:
        corpus: the units.
        masks: mask of the units of each set of patients; renders without a concept belong to none.
        counterfactuals: the renders without a concept, of the studies to score on.
        settings: what is wanted.
    """

    corpus: Corpus
    masks: Mapping[str, Bool[np.ndarray, " n_units"]]
    counterfactuals: list[Counterfactual]
    settings: InterpretSettings
    finders: dict[str, ExampleFinder] = field(default_factory=dict, repr=False)

    @cached_property
    def relative(self) -> csr_array:
        """Activations relative to each feature's scale."""
        return relative_activations(self.corpus.activations, self.masks["explain"])

    @cached_property
    def rules(self) -> RuleFinder:
        """Finds rules."""
        return RuleFinder(
            self.corpus,
            self.relative,
            self.masks["explain"],
            self.masks["choose"],
            rate=self.settings.false_discovery_rate,
        )

    def examples(self, part: str) -> ExampleFinder:
        """Finds examples in one set of patients."""
        if part not in self.finders:
            self.finders[part] = ExampleFinder(
                self.corpus,
                self.relative,
                self.masks[part],
                self.masks["explain"],
                self.counterfactuals if part == "score" else [],
                self.settings.seed,
            )
        return self.finders[part]

    @cached_property
    def n_studies_on(self) -> Int[np.ndarray, " n_features"]:
        """In how many studies of the three sets each feature is on."""
        kept = np.any([self.masks[part] for part in PARTS], axis=0)
        on = csc_array(self.relative)
        counts = np.zeros(self.corpus.n_features, dtype=np.int64)
        for feature in range(len(counts)):
            span = slice(on.indptr[feature], on.indptr[feature + 1])
            units = on.indices[span][on.data[span] > STRONG]
            counts[feature] = len(np.unique(self.corpus.study_of_unit[units[kept[units]]]))
        return counts

    def choose_features(self) -> list[int]:
        """The features that are explained, ascending.

        Raises:
            InterpretError: a feature that was asked for does not exist, or none is on often enough.
        """
        settings, n_features = self.settings, self.corpus.n_features
        if settings.features is not None:
            wrong = [feature for feature in settings.features if feature >= n_features]
            if wrong:
                raise InterpretError(f"There is no feature {wrong[0]}; the SAE has {n_features}.")
            return sorted(set(settings.features))
        often = np.flatnonzero(self.n_studies_on >= settings.min_studies)
        if not len(often):
            raise InterpretError(
                f"No feature is on in {settings.min_studies} studies; use more studies, or fewer min_studies."
            )
        rng = np.random.default_rng([settings.seed, 1])
        drawn = rng.permutation(often)[: settings.n_features or len(often)]
        return sorted(int(feature) for feature in drawn)


def gather_evidence(
    sae: Any,
    model: HookedVisionLanguageModel,
    settings: InterpretSettings,
    folder: Path,
    *,
    show_progress: bool = True,
) -> tuple[Evidence, Evidence]:
    """Run the model once on all studies, and the SAE and random directions on its activations.

    Args:
        sae: the SAE, as SAE-Lens loads it.
        model: the model that it reads, bound to the source.
        settings: what is wanted.
        folder: for intermediate files.
        show_progress: whether to show progress bars.

    Returns:
        the SAE's evidence, and that of an SAE of random directions, as a control.
    """
    source: list[Study] = model.studies[: settings.n_studies]
    parts = split_patients([study.patient_id for study in source], settings.parts, settings.seed)
    scored = [source[index] for index in parts["score"]]
    new = without_concepts(scored, settings.n_counterfactuals)
    everything = [*source, *(study for study, _, _ in new)]
    hook_name = sae.cfg.metadata.hook_name
    stream = LiveActivations(
        model,
        [hook_name],
        studies=everything,
        context_size=sae.cfg.metadata.context_size,
        progress=StudyProgress(shown=show_progress),
    )
    recording = record(stream, hook_name, folder / "recording")
    subject = Subject(sae, model, recording)
    number = {int(index): place for place, index in enumerate(recording.studies)}
    counterfactuals = [
        Counterfactual(number[len(source) + place], number[int(parts["score"][origin])], concept)
        for place, (_, origin, concept) in enumerate(new)
        if len(source) + place in number and int(parts["score"][origin]) in number
    ]
    folded = folded_copy(sae)
    corpus = build_corpus(subject, everything, folded, folder / "sae", show_progress=show_progress)
    masks = {
        part: corpus.in_studies(np.array([number[i] for i in own.tolist() if i in number], dtype=np.int64))
        for part, own in parts.items()
    }
    empty = next((part for part, mask in masks.items() if not mask.any()), None)
    if empty is not None:
        raise InterpretError(f"There are too few patients: none is left to {empty} on; use more studies.")
    n_active = corpus.firings.nnz / max(recording.n_tokens, 1)
    random = RandomDirections.like(sae, recording, n_active, settings.seed)
    control = build_corpus(subject, everything, random, folder / "random", show_progress=show_progress)
    return Evidence(corpus, masks, counterfactuals, settings), Evidence(control, masks, counterfactuals, settings)
