"""Writes the gallery: the front end, and the data files that it loads (see :mod:`.data_files`)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from sae_lens_maira.dashboard.data_files import INDEX, SERVING, put
from sae_lens_maira.dashboard.images import ImageWriter
from sae_lens_maira.data.study import Study, TokenKind
from sae_lens_maira.features.interpretations import Interpretation
from sae_lens_maira.features.record import firings_in_study
from sae_lens_maira.features.sparse import row
from sae_lens_maira.features.subject import Subject
from sae_lens_maira.features.table import N_TOP_TOKENS, FeatureTable, group_widths

FEATURES_PER_FILE = 64
FEATURES_PER_TOKEN = 10


@dataclass(frozen=True)
class GalleryText:
    """The texts above the gallery.

    Args:
        title: the gallery's heading.
        facts: names and values: the model, the SAE, the studies.
        banner: a line on every page if private studies are shown.
        note: a line about what was left out.
    """

    title: str
    facts: Mapping[str, str]
    banner: str = ""
    note: str = ""


def write_static(folder: Path) -> None:
    """Copy the front end: page, style, scripts, and the libraries of sae-dashboard's pages."""
    source = resources.files("sae_lens_maira.dashboard") / "static"
    with resources.as_file(source) as path:
        shutil.copytree(path, folder, dirs_exist_ok=True)
    (folder / "data" / "features").mkdir(parents=True, exist_ok=True)
    (folder / "data" / "studies").mkdir(exist_ok=True)
    put(folder / SERVING, "serving", False)


def write_index(
    folder: Path,
    subject: Subject,
    table: FeatureTable,
    text: GalleryText,
    pages: Sequence[int],
    interpretations: Sequence[Interpretation],
    shown: np.ndarray,
) -> None:
    """Write what the first page needs: the gallery's texts and the table of all features.

    Args:
        folder: the gallery's.
        subject: the SAE, its model and the recording.
        table: statistics of its features.
        text: title, facts, banner and note.
        pages: features that have a standard page.
        interpretations: of features.
        shown: mask of the recorded studies that may be shown.
    """
    recording, counts = subject.recording, table.counts
    text_of = subject.model.tokenizer.vocab.text_of
    meaning = {found.feature: found for found in interpretations}
    kinds = [kind.name.lower().replace("_", " ") for kind in TokenKind]
    first_kind = np.where(counts.n_firing > 0, counts.by_kind.argmax(axis=1), -1)
    features = range(table.n_features)
    index = {
        "title": text.title,
        "facts": list(text.facts.items()),
        "banner": text.banner,
        "note": text.note,
        "nFeatures": table.n_features,
        "nTokens": recording.n_tokens,
        "featuresPerFile": FEATURES_PER_FILE,
        "widths": group_widths(subject.sae),
        "kinds": kinds,
        "studies": [int(study) for study in recording.studies[shown]],
        "pages": sorted(pages),
        "group": table.groups.tolist(),
        "nFiring": counts.n_firing.tolist(),
        "largest": [number(value) for value in counts.largest],
        "kind": first_kind.tolist(),
        "tokens": [[text_of(token_id) for token_id in own[:N_TOP_TOKENS]] for own in table.top_tokens],
        "meaning": [meaning[feature].text if feature in meaning else "" for feature in features],
        "score": [_score(meaning.get(feature)) for feature in features],
        "labels": [[[fit.label, number(fit.auroc), fit.n_positive] for fit in own] for own in table.labels],
    }
    put(folder / INDEX, "index", index)
    inside = [
        [feature, [[finer, number(share)] for finer, share in own.inside]]
        for feature, own in enumerate(table.partners)
        if own.inside
    ]
    put(folder / "data" / "hierarchy.js", "hierarchy", inside)


def write_features(folder: Path, subject: Subject, table: FeatureTable, *, show_progress: bool = True) -> None:
    """Write the details of all features."""
    around: dict[int, list[list[Any]]] = {}
    for feature, own in enumerate(table.partners):
        for finer, share in own.inside:
            around.setdefault(finer, []).append([feature, number(share)])
    text_of = subject.model.tokenizer.vocab.text_of
    starts = range(0, table.n_features, FEATURES_PER_FILE)
    for part, start in enumerate(tqdm(starts, desc="gallery", disable=not show_progress)):
        details = [
            _feature(feature, subject, table, text_of, around.get(feature, []))
            for feature in range(start, min(start + FEATURES_PER_FILE, table.n_features))
        ]
        put(folder / "data" / "features" / f"{part}.js", f"features/{part}", details)


def write_studies(
    folder: Path,
    subject: Subject,
    table: FeatureTable,
    studies: Sequence[Study],
    images: ImageWriter,
    shown: np.ndarray,
    *,
    show_progress: bool = True,
) -> None:
    """Write the studies that may be shown, whose images ``images`` has been given."""
    recording = subject.recording
    numbers = np.flatnonzero(shown)
    for number_, index in tqdm(
        [(int(k), int(recording.studies[k])) for k in numbers], desc="studies", disable=not show_progress
    ):
        tokens = recording.tokens(number_)
        study = studies[index]
        value = {
            "id": study.study_id,
            "view": study.view or "",
            "private": not study.shareable,
            "tokens": subject.model.tokenizer.row_to_texts(recording.token_ids[tokens].tolist()),
            "kinds": recording.kinds[tokens].tolist(),
            "labels": [
                [name, label.presence, label.change or ""]
                for name, label in sorted(study.labels.items())
                if label.presence != "absent"
            ],
            "images": {view: list(size) for view, size in images.written(index).items()},
            "active": [_active(table, token) for token in range(tokens.start, tokens.stop)],
        }
        put(folder / "data" / "studies" / f"{index}.js", f"studies/{index}", value)


def number(value: Any) -> float:
    """Round to five significant digits: a page shows no more, and the file is a quarter as large."""
    return float(f"{value:.5g}")


def _score(found: Interpretation | None) -> float | None:
    return None if found is None or found.score is None else number(found.score)


def _active(table: FeatureTable, token: int) -> list[float]:
    """The strongest features at a token: feature, activation, feature, activation, ..."""
    features, values = row(table.firings, token)
    best = np.lexsort((features, -values))[:FEATURES_PER_TOKEN]
    return [entry for k in best for entry in (int(features[k]), number(values[k]))]


def _feature(feature: int, subject: Subject, table: FeatureTable, text_of: Any, around: list[list[Any]]) -> Any:
    counts, effects, own = table.counts, table.effects, table.partners[feature]

    def logits(ids: np.ndarray, values: np.ndarray) -> list[list[Any]]:
        found = zip(ids[feature], values[feature], strict=True)
        return [[text_of(int(token_id)), number(value)] for token_id, value in found]

    return {
        "mean": number(counts.mean[feature]),
        "histogram": counts.histogram[feature].tolist() if counts.n_firing[feature] else [],
        "byKind": [[kind, int(n)] for kind, n in enumerate(counts.by_kind[feature]) if n],
        "promoted": logits(effects.promoted, effects.promoted_by),
        "suppressed": logits(effects.suppressed, effects.suppressed_by),
        "cosine": [
            [int(other), number(value)]
            for other, value in zip(table.cosine[0][feature], table.cosine[1][feature], strict=True)
        ],
        "together": [[other, number(jaccard), n] for other, jaccard, n in own.together],
        "inside": [[finer, number(share)] for finer, share in own.inside],
        "around": around,
        "examples": [_example(feature, int(study), subject, table) for study in table.examples[feature] if study >= 0],
    }


def _example(feature: int, study: int, subject: Subject, table: FeatureTable) -> list[Any]:
    """Index of the study, and the feature's activations there: position in the row, activation, position, ..."""
    found = zip(*firings_in_study(table, subject.recording, feature, study), strict=True)
    return [
        int(subject.recording.studies[study]),
        [entry for position, value in found for entry in (int(position), number(value))],
    ]
