"""The phantom's front door: ``studies(n, seed)`` samples studies, ``render(concepts, anatomy_seed)`` builds one.

Both turn a ``Recipe``, the small and complete description of a study, into a ``PhantomStudy``. The same recipe gives
the same study, and changing one field of a recipe changes only what the field describes: ``counterfactual`` is
``replace``.
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

GENERATOR_VERSION = 1
"""Raise it whenever the same seed gives other pixels, texts, labels or boxes; older caches are refused."""
IMAGE_SIZE = 112
"""Width and height of the images in pixels, unless asked otherwise."""
_EPOCH = datetime(2100, 1, 1)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides a study. ``seed`` decides exposure, position, noise and wording; None is "no prior"."""

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
    """A study with its recipe, which can be changed and drawn again."""

    frontal: PhantomImage
    lateral: PhantomImage | None = None
    prior_frontal: PhantomImage | None = None
    recipe: Recipe = field(kw_only=True)

    @property
    def grounded_findings(self) -> str:
        """The findings in MAIRA-2's grounded form."""
        return report.grounded_text(self.findings or "", self.sentences)


def studies(n: int, seed: int, *, size: int = IMAGE_SIZE) -> Iterator[PhantomStudy]:
    """``n`` studies of ``n`` patients; images are drawn when they are opened."""
    for index in range(n):
        yield sampled_study(seed, index, size=size)


def sampled_study(seed: int, index: int, *, size: int = IMAGE_SIZE) -> PhantomStudy:
    """The study at an index of :func:`studies`; it depends on these arguments alone."""
    recipe = sample_recipe(np.random.default_rng([seed, index]), size=size)
    return build(recipe, study_id=f"phantom-{seed}-{index:06d}")


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
    """A study that shows exactly the given concepts.

    Two calls that differ only in their concepts give studies that differ only in the pixels that these concepts touch
    and in the sentences about them.

    Args:
        concepts: names of visible concepts, or a state that also gives their extents.
        anatomy_seed: the patient.
        prior: concepts of a prior study of the patient; empty for a normal prior, None for no prior.
        seed: decides exposure, position, noise and wording.
        indication: one of ``requests.INDICATIONS``.
        portable: taken at the bedside: an AP view without a lateral.
        lateral: whether there is a lateral image.
        prior_report: whether the report of the prior study is given.
        size: width and height of the images, in pixels.
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
    """The same study with other current or prior concepts; None leaves them unchanged."""
    recipe = study.recipe
    return build(
        replace(
            recipe,
            state=recipe.state if concepts is None else as_state(concepts),
            prior=recipe.prior if prior is None else as_state(prior),
        )
    )


def sample_recipe(rng: np.random.Generator, *, size: int = IMAGE_SIZE, unrelated: bool = False) -> Recipe:
    """Draw a patient, a clinical context, a state, and perhaps a prior state.

    With ``unrelated`` the concepts ignore the context. :func:`studies` never yields such a study, but a share of the
    training pool is made of them, so that the model has to look for each concept instead of inferring it from the
    concepts that it usually comes with.
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
    """How the images were taken, as a key of ``requests.TECHNIQUES``."""
    if recipe.portable:
        return "portable"
    return "two_views" if recipe.lateral else "single_upright"


def build(recipe: Recipe, study_id: str | None = None) -> PhantomStudy:
    """The study that a recipe describes: images (not yet drawn), request, report and labels."""
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
