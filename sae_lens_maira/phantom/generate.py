"""The phantom's front door: `studies(n, seed)` samples a world, `render(concepts, anatomy_seed)` builds one on demand.

Both turn a `Recipe`, the complete and small description of a study, into a `PhantomStudy`. The same recipe gives the
same study, and two recipes that differ in one field give studies that differ in nothing else: `counterfactual` is
`replace`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import numpy as np

from sae_lens_maira.data.study import Study
from sae_lens_maira.phantom.words import report, requests
from sae_lens_maira.phantom.world import contexts, scene
from sae_lens_maira.phantom.world.concepts import Appearance, State, as_state, visible_labels
from sae_lens_maira.phantom.world.film import Shot
from sae_lens_maira.phantom.world.scene import PhantomImage

IMAGE_SIZE = 112
_EPOCH = datetime(2100, 1, 1)


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides a study: `seed` decides exposures, positions, noise and wording; `prior` may be missing."""

    anatomy_seed: int
    state: Mapping[str, Appearance] = field(hash=False)
    prior: Mapping[str, Appearance] | None = field(default=None, hash=False)
    seed: int = 0
    indication: str = "dyspnea"
    portable: bool = False
    lateral: bool = True
    prior_report: bool = True
    size: int = IMAGE_SIZE


@dataclass(frozen=True, slots=True)
class PhantomStudy(Study):
    """A study whose making is known: its images are drawn, and its recipe can be changed and drawn again."""

    frontal: PhantomImage
    lateral: PhantomImage | None = None
    prior_frontal: PhantomImage | None = None
    recipe: Recipe = field(kw_only=True)

    @property
    def grounded_findings(self) -> str:
        """The findings in MAIRA-2's grounded form."""
        return report.grounded_text(self.findings or "", self.sentences)


def studies(n: int, seed: int, *, size: int = IMAGE_SIZE) -> Iterator[PhantomStudy]:
    """`n` studies of `n` patients. Study i depends on `seed` and i alone; images are drawn when opened."""
    for i in range(n):
        yield build(sample_recipe(np.random.default_rng([seed, i]), size=size), study_id=f"phantom-{seed}-{i:06d}")


def render(
    concepts: Iterable[str] | State,
    anatomy_seed: int,
    *,
    prior: Iterable[str] | State | None = None,
    seed: int = 0,
    indication: str = "dyspnea",
    portable: bool = False,
    lateral: bool = True,
    prior_report: bool = True,
    size: int = IMAGE_SIZE,
) -> PhantomStudy:
    """A study that shows exactly `concepts` (names, or a state with extents), of patient `anatomy_seed`.

    With the same other arguments, two calls differ only where the concepts do: the pixels they touch and the sentences
    about them. `prior` gives the concepts of a prior study of the same patient; an empty one is a normal prior.
    """
    recipe = Recipe(
        anatomy_seed=anatomy_seed,
        state=as_state(concepts),
        prior=None if prior is None else as_state(prior),
        seed=seed,
        indication=indication,
        portable=portable,
        lateral=lateral and not portable,
        prior_report=prior_report,
        size=size,
    )
    return build(recipe)


def counterfactual(
    study: PhantomStudy,
    *,
    concepts: Iterable[str] | State | None = None,
    prior: Iterable[str] | State | None = None,
) -> PhantomStudy:
    """The same study with other concepts now, or in the prior; what is not given stays as it was."""
    recipe = study.recipe
    return build(
        replace(
            recipe,
            state=recipe.state if concepts is None else as_state(concepts),
            prior=recipe.prior if prior is None else as_state(prior),
        )
    )


def sample_recipe(rng: np.random.Generator, *, size: int = IMAGE_SIZE, unrelated: bool = False) -> Recipe:
    """A patient, a clinical context, and a state with or without a prior one.

    With `unrelated` the concepts ignore the context. No study that `studies` yields is like that; a share of the
    training pool is, so that the model has to look at each concept and cannot lean on what it usually comes with.
    """
    context = contexts.choose_context(rng)

    def sample() -> dict[str, Appearance]:
        return contexts.sample_unrelated(rng) if unrelated else contexts.sample_state(context, rng)

    state, prior = sample(), None
    if rng.random() < context.with_prior:
        prior, state = state, contexts.evolve(state, sample(), rng)
    portable = bool(rng.random() < context.portable)
    return Recipe(
        anatomy_seed=int(rng.integers(2**31)),
        state=state,
        prior=prior,
        seed=int(rng.integers(2**31)),
        indication=context.indications[int(rng.integers(len(context.indications)))],
        portable=portable,
        lateral=bool(rng.random() < 0.55) and not portable,
        prior_report=bool(rng.random() < 0.5),
        size=size,
    )


def technique_of(recipe: Recipe) -> str:
    """How the study was made, as a key of `requests.TECHNIQUES`."""
    if recipe.portable:
        return "portable"
    return "two_views" if recipe.lateral else "single_upright"


def build(recipe: Recipe, study_id: str | None = None) -> PhantomStudy:
    """The study that a recipe describes: images to be drawn, request, report and labels."""
    seed, state, prior = recipe.seed, recipe.state, recipe.prior
    shots = [Shot.sample(np.random.default_rng([seed, k])) for k in range(3)]
    frontal = PhantomImage(recipe.anatomy_seed, state, shots[0], "frontal", recipe.size)
    lateral = PhantomImage(recipe.anatomy_seed, state, shots[1], "lateral", recipe.size) if recipe.lateral else None
    prior_frontal = (
        None if prior is None else PhantomImage(recipe.anatomy_seed, prior, shots[2], "frontal", recipe.size)
    )

    findings, sentences = report.compose(state, prior, seed, scene.boxes(frontal))
    prior_report = None
    if prior is not None and recipe.prior_report:
        prior_report, _ = report.compose(prior, None, seed + 1)
    comparison = "none" if prior is None else "prior"
    request = requests.write_request(
        recipe.indication, technique_of(recipe), comparison, np.random.default_rng([seed, 3])
    )
    return PhantomStudy(
        study_id=study_id or f"phantom-{recipe.anatomy_seed}-{seed}",
        patient_id=f"patient-{recipe.anatomy_seed}",
        frontal=frontal,
        lateral=lateral,
        prior_frontal=prior_frontal,
        indication=request.indication,
        technique=request.technique,
        comparison=request.comparison,
        prior_report=prior_report,
        findings=findings,
        labels={**visible_labels(state, prior), **request.labels},
        sentences=sentences,
        view="AP" if recipe.portable else "PA",
        acquired_at=_EPOCH + timedelta(minutes=seed % (365 * 24 * 60)),
        shareable=True,
        recipe=recipe,
    )
