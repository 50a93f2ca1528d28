"""Studies of the phantom, cut into units by hand-made tokens, and features whose meaning was planted."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.sparse import csr_array

from sae_lens_maira import phantom
from sae_lens_maira.activations.block import Block
from sae_lens_maira.data.study import SECTION_KINDS, Study, TokenKind
from sae_lens_maira.features.firings import strongest_in
from sae_lens_maira.features.recording import Recording
from sae_lens_maira.interpret.corpus import Corpus, Unit, cut_into_units
from sae_lens_maira.interpret.counterfactuals import Counterfactual, without_concepts
from sae_lens_maira.interpret.evidence import Evidence
from sae_lens_maira.interpret.facts import Fact
from sae_lens_maira.interpret.settings import InterpretSettings
from sae_lens_maira.measures.splits import split_patients

HOOK = "blocks.0.hook_resid_post"
PACEMAKER, EFFUSION, IMAGE, WORD, NOISE, DEAD, UNCHANGED = range(7)
MEANINGS: dict[int, Callable[[Unit], float]] = {
    PACEMAKER: lambda unit: 1.0 * (Fact("concept", "pacemaker") in unit.facts and unit.place == "findings"),
    # Weak everywhere, strong at one finding: as most features of real SAEs are.
    EFFUSION: lambda unit: 1.0 if Fact("finding", "effusion") in unit.facts else 0.05,
    IMAGE: lambda unit: 1.0 * (unit.place == "frontal" and Fact("concept", "cardiomegaly") in unit.facts),
    WORD: lambda unit: 1.0 * ("tube" in unit.text.lower().split()),
    DEAD: lambda _: 0.0,
    UNCHANGED: lambda unit: 1.0 * (Fact("change", "unchanged") in unit.facts and unit.place == "findings"),
}
_VIEWS = {
    "frontal": TokenKind.FRONTAL_IMAGE,
    "lateral": TokenKind.LATERAL_IMAGE,
    "prior_frontal": TokenKind.PRIOR_IMAGE,
}


def pieces_of(text: str) -> list[str]:
    """Tokens as tokenizers make them: words with the blank before them, and punctuation."""
    return re.findall(r"\s?\w+|\s?[^\w\s]", text)


def record_texts(studies: Sequence[Study]) -> tuple[Recording, list[str]]:
    """A recording without activations, and the text of each token id."""
    ids: dict[str, int] = {}
    token_ids, index, position, kind = [], [], [], []
    for number, study in enumerate(studies):
        own = [("", int(_VIEWS[view])) for view in study.images]
        own += [(piece, int(SECTION_KINDS[name])) for name, text in study.texts.items() for piece in pieces_of(text)]
        for place, (piece, code) in enumerate(own):
            token_ids.append(ids.setdefault(piece, len(ids)))
            index.append(number)
            position.append(place)
            kind.append(code)
    n_tokens = len(token_ids)
    block = Block(
        {HOOK: torch.zeros(n_tokens, 1)},
        {HOOK: torch.zeros(n_tokens)},
        torch.tensor(token_ids),
        torch.tensor(index),
        torch.tensor(position),
        torch.tensor(kind, dtype=torch.uint8),
    )
    return Recording([block], HOOK), list(ids)


def make_evidence(
    folder, n_studies: int = 240, seed: int = 4, settings: InterpretSettings | None = None, **changes
) -> Evidence:
    """Evidence with planted features; ``changes`` replace fields of every study."""
    settings = settings or InterpretSettings(n_features=None, n_on=8, n_silent=3, n_audit=40, n_controls=4)
    source: list[Study] = [replace(study, **changes) for study in phantom.studies(n_studies, seed=seed)]
    parts = split_patients([study.patient_id for study in source], settings.parts, settings.seed)
    new = without_concepts([source[index] for index in parts["score"]], 40)
    counterfactuals = [
        Counterfactual(n_studies + place, int(parts["score"][origin]), concept)
        for place, (_, origin, concept) in enumerate(new)
    ]
    everything = [*source, *(replace(study, **changes) for study, _, _ in new)]
    recording, texts = record_texts(everything)
    units = cut_into_units(recording, everything, texts)
    firings = plant(units, recording.n_tokens)
    corpus = Corpus(
        everything, units, strongest_in(firings, [unit.tokens for unit in units], folder), firings, recording
    )
    masks = {part: corpus.in_studies(own) for part, own in parts.items()}
    return Evidence(corpus, masks, counterfactuals, settings)


def plant(units: Sequence[Unit], n_tokens: int) -> csr_array:
    """Features that fire at the last token of the units that they mean; one of them fires at random."""
    rng = np.random.default_rng(0)
    dense = np.zeros((n_tokens, len(MEANINGS) + 1))
    for unit in units:
        for feature, meaning in MEANINGS.items():
            dense[unit.tokens.stop - 1, feature] = meaning(unit)
        dense[unit.tokens.stop - 1, NOISE] = float(rng.random() < 0.15)
    matrix = csr_array(dense.astype(np.float32))
    matrix.sort_indices()
    return matrix
