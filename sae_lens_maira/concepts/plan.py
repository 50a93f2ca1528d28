"""What a run would ask, from labels alone: nothing is loaded or computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from sae_lens_maira.concepts.evaluate import questions_of
from sae_lens_maira.concepts.exam import halves
from sae_lens_maira.concepts.questions import UNKNOWN
from sae_lens_maira.concepts.settings import ConceptSettings
from sae_lens_maira.data.study import Study


def describe_plan(studies: Sequence[Study], first_study: int, settings: ConceptSettings) -> str:
    """A few lines for people.

    Args:
        studies: the studies that would be scored.
        first_study: index of the first of them in its source.
        settings: how they would be scored.
    """
    truth = questions_of(studies, settings)
    patients = [study.patient_id for study in studies]
    is_choice = halves(patients, settings.choice_share, settings.seed)
    asked: Counter[str] = Counter()
    few: list[str] = []
    for column, question in enumerate(truth.questions):
        answers = truth.answers[:, column]
        counts = [int((answers[half] == value).sum()) for half in (is_choice, ~is_choice) for value in (0, 1)]
        if min(counts) >= settings.min_studies:
            asked[question.kind] += 1
        else:
            few.append(question.name)
    n_unknown = int(np.sum(truth.answers == UNKNOWN))
    kinds = ", ".join(f"{count} of kind {kind}" for kind, count in asked.items()) or "none"
    listed = f" ({', '.join(few[:8])}{', ...' if len(few) > 8 else ''})" if few else ""
    return "\n".join(
        [
            f"{len(studies)} studies from index {first_study} of {len(set(patients))} patients: {int(is_choice.sum())} "
            f"choose features, {int((~is_choice).sum())} score them.",
            f"Questions: {kinds}; {len(few)} have too few studies{listed}. {n_unknown} answers are unknown.",
            f"Regions: {', '.join(settings.regions)}.",
            f"Controls: {', '.join(settings.controls) or 'none'}.",
            "Nothing was computed.",
        ]
    )
