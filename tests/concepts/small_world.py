"""Studies with labels and sentences, and features that are planted at their tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from sae_lens_maira.activations.block import Block
from sae_lens_maira.concepts.evaluate import questions_of
from sae_lens_maira.concepts.exam import Exam, halves, set_exam
from sae_lens_maira.concepts.feature_sets import Firings, SparseFeatures, pool_firings
from sae_lens_maira.concepts.segments import Segments, cut
from sae_lens_maira.concepts.settings import ConceptSettings
from sae_lens_maira.data.study import FileImage, Label, SentenceLabel, Study, TokenKind
from sae_lens_maira.features.recording import Recording

HOOK = "blocks.0.hook_resid_post"
KINDS = [
    TokenKind.FRONTAL_IMAGE,
    TokenKind.TEMPLATE,
    TokenKind.FRONTAL_IMAGE,
    *[TokenKind.INDICATION] * 2,
    *[TokenKind.FINDINGS] * 6,
]
"""One study's tokens: a study token, fixed text, an image token, two words of the indication, six of the findings."""
TEXTS = ["<frontal>", "Q:", "<frontal>", " pain", " now", " There", " is", " edema.", " No", " rib", " fracture."]
FINDINGS = "There is edema. No rib fracture."
SENTENCES = {"edema": (0, 15), "rib": (16, 32)}


def make_study(index: int, labels: dict[str, Label], patient: str | None = None, has_prior: bool = True) -> Study:
    """A study whose findings have one sentence about edema and one about ribs."""
    image = FileImage(Path("none.png"))
    sentences = tuple(
        SentenceLabel(start, end, {name: label for name, label in labels.items() if name.startswith(about)})
        for about, (start, end) in SENTENCES.items()
    )
    return Study(
        study_id=f"study-{index}",
        patient_id=patient or f"patient-{index}",
        frontal=image,
        prior_frontal=image if has_prior else None,
        indication="pain now",
        findings=FINDINGS,
        labels=labels,
        sentences=sentences,
    )


def make_recording(n_studies: int, d_in: int = 4, seed: int = 0) -> Recording:
    """Random activations, in two blocks; study i of the source is recorded as study i."""
    rng, n = np.random.default_rng(seed), len(KINDS)
    blocks = []
    for own in np.array_split(np.arange(n_studies), 2):
        n_tokens = len(own) * n
        activations = torch.from_numpy(rng.normal(size=(n_tokens, d_in)).astype(np.float32))
        blocks.append(
            Block(
                activations={HOOK: activations},
                norms={HOOK: activations.norm(dim=1)},
                token_ids=torch.arange(n).repeat(len(own)),
                study_index=torch.from_numpy(np.repeat(own, n)),
                position=torch.arange(n).repeat(len(own)),
                kind=torch.tensor([int(kind) for kind in KINDS], dtype=torch.uint8).repeat(len(own)),
            )
        )
    return Recording(blocks, HOOK)


def texts_of(token_ids: Sequence[int]) -> list[str]:
    """Texts of token ids."""
    return [TEXTS[token_id] for token_id in token_ids]


def make_segments(studies: Sequence[Study]) -> Segments:
    """The studies, cut."""
    return cut(make_recording(len(studies)), studies, texts_of)


def make_exam(studies: Sequence[Study], settings: ConceptSettings, is_choice: np.ndarray | None = None) -> Exam:
    """The exam of a recording of studies."""
    segments = make_segments(studies)
    truth = questions_of(studies, settings)
    patients = [study.patient_id for study in studies]
    return set_exam(
        segments,
        truth,
        segments.about(truth.questions, [[sentence.labels for sentence in study.sentences] for study in studies]),
        patients,
        halves(patients, settings.choice_share, settings.seed) if is_choice is None else is_choice,
        regions=settings.regions,
        min_studies=settings.min_studies,
        n_resamples=settings.n_resamples,
        seed=settings.seed,
    )


def plant(
    studies: Sequence[Study], fires: Sequence[Callable[[int, int], float]], folder: Path, segments: Segments
) -> SparseFeatures:
    """Features that are functions of study and position; each study is a part of its own."""
    n, parts = len(KINDS), []
    for study in range(len(studies)):
        found = [
            (study * n + position, feature, value)
            for position in range(n)
            for feature, rule in enumerate(fires)
            if (value := rule(study, position)) > 0
        ]
        entries = np.array(found, dtype=np.float64).reshape(-1, 3).T
        tokens, features = entries[0].astype(int), entries[1].astype(int)
        parts.append(Firings((study + 1) * n, tokens, features, entries[2].astype(np.float32)))
    return pool_firings(parts, len(fires), segments, folder)
