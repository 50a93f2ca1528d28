"""A small world with known truth: chest X-ray studies drawn and reported by rule, and a tiny MAIRA-2 trained on them.

    from sae_lens_maira import phantom
    for study in phantom.studies(1000, seed=0): ...
    with_it, without = (phantom.render(c, anatomy_seed=7) for c in (["pacemaker"], []))

Importing this needs numpy only; the model and its training live in submodules that are imported when wanted.
"""

from sae_lens_maira.phantom.generate import IMAGE_SIZE, PhantomStudy, Recipe, counterfactual, render, studies
from sae_lens_maira.phantom.words.scoring import parse_report
from sae_lens_maira.phantom.world.concepts import CONCEPTS, TEXT_ONLY, VISIBLE, Appearance, Concept

__all__ = [
    "CONCEPTS",
    "IMAGE_SIZE",
    "TEXT_ONLY",
    "VISIBLE",
    "Appearance",
    "Concept",
    "PhantomStudy",
    "Recipe",
    "counterfactual",
    "parse_report",
    "render",
    "studies",
]
