"""A small world with known truth: chest X-ray studies drawn and reported by rule, and a tiny MAIRA-2 trained on them.

    from sae_lens_maira import phantom
    for study in phantom.studies(1000, seed=0): ...
    with_it, without = (phantom.render(c, anatomy_seed=7) for c in (["pacemaker"], []))

Four wings, each of which imports only those above it::

    world/      patients, their diseases and devices, and the images that show them
    words/      requests and reports, and the scorer that reads reports back
    generate    world and words together: studies, render, counterfactual
    source      the phantom as a source of studies
    mesh        draws the MeSH tags of Open-i's reports
    model/      the tiny MAIRA-2: architecture, tokenizer, and the shipped weights
    training/   how the weights were made and scored; not needed to use them

Importing this loads numpy, but neither torch nor transformers nor Pillow.
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
