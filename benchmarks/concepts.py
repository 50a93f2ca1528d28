"""Scores of all latents for all labels from activations on disk, against a loop over scikit-learn.

10,000 synthetic studies of 12 tokens, 16,384 latents of a random TopK SAE (k 32), and 38 labels, each true of a third
of the studies and planted as a direction at one image token. Both sides pool each latent by its maximum and its mean in
two regions, compute AUROC on the choosing half for both pools, and AUROC and average precision of the better pool on
the other half. scikit-learn is timed on a sample of latents and labels, on pooled values that it is given, and must
find the same numbers; its time for all pairs is extrapolated. Memory is the peak of a process, for a quarter of the
studies and for all.

scikit-learn is no dependency of this package: pip install scikit-learn.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks._memory import memory_mib
from sae_lens_maira.activations.block import Block
from sae_lens_maira.concepts.choice import POOLS, choose
from sae_lens_maira.concepts.directions import random_directions
from sae_lens_maira.concepts.exam import Exam, halves, set_exam
from sae_lens_maira.concepts.feature_sets import SparseFeatures, pool_firings
from sae_lens_maira.concepts.firings import top_k
from sae_lens_maira.concepts.per_feature import EveryScore
from sae_lens_maira.concepts.pooled import rank
from sae_lens_maira.concepts.questions import Question, Truth
from sae_lens_maira.concepts.segments import cut
from sae_lens_maira.data.study import FileImage, Study, TokenKind
from sae_lens_maira.features.recording import Recording, record

N_STUDIES, N_LATENTS, N_LABELS, D_IN, K = 10_000, 16_384, 38, 64, 32
KINDS = [TokenKind.FRONTAL_IMAGE] * 6 + [TokenKind.INDICATION] * 2 + [TokenKind.FINDINGS] * 4
HOOK = "blocks.0.hook_resid_post"
N_PAIRS = 150
"""Pairs of a latent and a label that scikit-learn scores."""


def blocks(n_studies: int, answers: np.ndarray, size: int = 500):
    """Activations: noise, and at one image token a direction for each of the study's labels."""
    n = len(KINDS)
    directions = random_directions(D_IN, N_LABELS, seed=1).T
    for start in range(0, n_studies, size):
        own = np.arange(start, min(start + size, n_studies))
        generator = torch.Generator().manual_seed(start)
        x = torch.randn(len(own), n, D_IN, generator=generator)
        x[:, 3] += 3 * torch.from_numpy(answers[own]).float() @ directions
        activations = x.reshape(-1, D_IN)
        yield Block(
            activations={HOOK: activations},
            norms={HOOK: activations.norm(dim=1)},
            token_ids=torch.arange(n).repeat(len(own)),
            study_index=torch.from_numpy(np.repeat(own, n)),
            position=torch.arange(n).repeat(len(own)),
            kind=torch.tensor([int(kind) for kind in KINDS], dtype=torch.uint8).repeat(len(own)),
        )


def make_exam(n_studies: int, recording: Recording, answers: np.ndarray) -> Exam:
    """All labels at the images and in the findings."""
    image = FileImage(Path("none.png"))
    patients = [f"patient-{index // 2}" for index in range(n_studies)]
    studies = [Study(str(index), patients[index], image) for index in range(n_studies)]
    segments = cut(recording, studies, lambda ids: [""] * len(ids))
    questions = tuple(Question(f"label-{index}", "presence", (f"label-{index}",)) for index in range(N_LABELS))
    truth = Truth(questions, answers.astype(np.int8))
    about = np.zeros((segments.n_segments, N_LABELS), dtype=bool)
    is_choice = halves(patients, 0.5, 0)
    return set_exam(segments, truth, about, patients, is_choice, regions=["images", "findings"], n_resamples=10)


def ours(n_studies: int, n_latents: int, folder: Path) -> tuple[float, float, SparseFeatures, Exam]:
    """Seconds to encode and pool, and to score everything."""
    answers = np.random.default_rng(0).random((n_studies, N_LABELS)) < 1 / 3
    recording = record(blocks(n_studies, answers), HOOK, folder / "cache")
    exam = make_exam(n_studies, recording, answers)
    start = time.perf_counter()
    found = top_k(recording, random_directions(D_IN, n_latents, seed=0), torch.zeros(D_IN), K)
    features = pool_firings(found, n_latents, exam.segments, folder / "pooled")
    pooled = time.perf_counter()
    with EveryScore(folder / "scores.parquet", exam) as scores:
        choose(features, exam, observers=[scores.add])
    return pooled - start, time.perf_counter() - pooled, features, exam


def peer(features: SparseFeatures, exam: Exam, folder: Path) -> float:
    """Seconds that scikit-learn needs for all pairs, from a sample of them, after comparing the numbers."""
    import pyarrow.parquet
    from sklearn.metrics import average_precision_score, roc_auc_score  # pyright: ignore[reportMissingImports]

    rng = np.random.default_rng(1)
    items = exam.items
    table = pyarrow.parquet.read_table(folder / "scores.parquet")
    ours_of = {name: table.column(name).to_numpy() for name in ("choice_auroc", "auroc", "average_precision")}
    seconds = 0.0
    for latent in rng.choice(features.n_features, 15, replace=False).tolist():
        (_, block) = next(features.blocks(np.array([latent])))
        for number in rng.choice(len(items), N_PAIRS // 15, replace=False).tolist():
            item, reading = items[number], exam.reading_of_item[number]
            columns = []
            for pool in POOLS:
                ranked = rank(block, exam.segments, reading.segments, reading.n_tokens, pool)
                column = np.zeros(len(exam.patients))
                column[ranked.studies] = ranked.values
                columns.append(column)
            start = time.perf_counter()
            areas = [roc_auc_score(item.positive[exam.is_choice], column[exam.is_choice]) for column in columns]
            best = columns[int(np.argmax(areas))][~exam.is_choice]
            truth = item.positive[~exam.is_choice]
            expected = [max(areas), roc_auc_score(truth, best), average_precision_score(truth, best)]
            seconds += time.perf_counter() - start
            row = latent * len(items) + number
            np.testing.assert_allclose([values[row] for values in ours_of.values()], expected, atol=2e-6)
    return seconds / N_PAIRS * features.n_features * len(items)


def peak(n_studies: int, n_latents: int) -> float:
    """Peak memory of a process that scores, in MiB."""
    command = [sys.executable, "-m", "benchmarks.concepts", str(n_studies), str(n_latents)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main(n_studies: int = N_STUDIES) -> None:
    small = peak(n_studies // 4, N_LATENTS)
    with tempfile.TemporaryDirectory() as scratch:
        pooling, scoring, features, exam = ours(n_studies, N_LATENTS, Path(scratch))
        large = memory_mib("VmHWM")
        loop = peer(features, exam, Path(scratch))
    print(f"{n_studies} studies, {N_LATENTS} latents, {len(exam.items)} questions in regions")
    print(f"encoding and pooling {pooling:.1f} s; scoring {scoring:.1f} s; scikit-learn's loop {loop:.0f} s")
    print(f"{loop / scoring:.0f} times as fast for the scores, {loop / (scoring + pooling):.0f} times with pooling")
    print(
        f"peak memory: {small:.0f} MiB for {n_studies // 4} studies, {large:.0f} MiB for {n_studies}; one dense table "
    )
    print(f"of studies by latents would be {n_studies * N_LATENTS * 4 / 2**20:.0f} MiB")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        with tempfile.TemporaryDirectory() as scratch_path:
            ours(int(sys.argv[1]), int(sys.argv[2]), Path(scratch_path))
        print(memory_mib("VmHWM"))
    else:
        main(*map(int, sys.argv[1:]))
