"""Delphi's folders (eai-delphi 0.1.3), written and read.

    latents/HOOK/START_END.safetensors   locations (n, 3): row, position, latent - START; activations; tokens
    latents/HOOK/config.json             what the cache was made with
    explanations/HOOK_latentN.txt        a JSON string
    scores/detection/HOOK_latentN.txt    a JSON list, one object per judged text

Rows have one length, so they are padded; ids of images and studies, which Delphi's tokenizer does not know, become
padding. Token ids and texts are written of studies that may be shared only: rows of the others are empty.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_array

from sae_lens_maira.errors import InterpretError
from sae_lens_maira.features.sparse import entries, n_columns
from sae_lens_maira.files import from_json, to_json, write_text
from sae_lens_maira.interpret.explanation import cleaned
from sae_lens_maira.interpret.shown import show

if TYPE_CHECKING:
    from sae_lens_maira.features.recording import Recording
    from sae_lens_maira.interpret.evidence import Evidence
    from sae_lens_maira.interpret.scoring import Scored

SMALLEST = 1e-5
"""Delphi drops activations that are not larger."""
_NAME = re.compile(r"(?P<hook>.+)_latent(?P<feature>[0-9]{1,12})\.txt")
_SPLIT = re.compile(r"([0-9]+)_([0-9]+)\.safetensors")


@dataclass(frozen=True)
class DelphiCache:
    """A cache, in memory.

    Args:
        tokens: token ids, (n_rows, context_size).
        activations: (n_rows * context_size, n_features).
        model_name: of the model.
    """

    tokens: Int[np.ndarray, "n_rows context_size"]
    activations: csr_array
    model_name: str


def write_cache(
    folder: Path,
    recording: Recording,
    firings: csr_array,
    shareable: Sequence[bool],
    *,
    d_vocab: int,
    pad_token_id: int,
    model_name: str,
    n_splits: int = 5,
) -> Path:
    """Write activations in the layout of Delphi's cache; returns the hook point's folder.

    Args:
        folder: Delphi's base folder.
        recording: tokens of the studies.
        firings: activations, (n_tokens, n_features).
        shareable: whether each recorded study may be shared; the rows of the others are padding without activations.
        d_vocab: token ids from here on are images and studies.
        pad_token_id: what replaces them.
        model_name: from which Delphi loads the tokenizer.
        n_splits: files; each holds a range of latents.
    """
    path = folder / "latents" / recording.hook_name
    path.mkdir(parents=True, exist_ok=True)
    lengths = np.diff(recording.offsets)
    context_size = int(lengths.max())
    positions = np.arange(recording.n_tokens) - np.repeat(recording.offsets[:-1], lengths)
    rows, may = recording.study_of_token, np.asarray(shareable, dtype=bool)
    known = may[rows] & (recording.token_ids < d_vocab)
    tokens = np.full((recording.n_studies, context_size), pad_token_id, dtype=np.int64)
    tokens[rows[known], positions[known]] = recording.token_ids[known]
    places, latents, values = entries(firings, 0, recording.n_tokens)
    kept = (values > SMALLEST) & may[rows[places]]
    places, latents, values = places[kept], latents[kept], values[kept]
    for own in np.array_split(np.arange(n_columns(firings)), n_splits):
        if not len(own):
            continue
        inside = (latents >= own[0]) & (latents <= own[-1])
        at = places[inside]
        locations = np.stack([rows[at], positions[at], latents[inside] - own[0]], axis=1).astype(np.uint32)
        tensors = {"locations": locations, "activations": values[inside].astype(np.float16), "tokens": tokens}
        save_file(tensors, path / f"{own[0]}_{own[-1]}.safetensors")
    config = {
        "model_name": model_name,
        "cache_ctx_len": context_size,
        "batch_size": 1,
        "n_tokens": int(tokens.size),
        "n_splits": n_splits,
        "dataset_repo": "",
        "dataset_split": "",
        "dataset_name": "",
        "dataset_column": "",
    }
    write_text(path / "config.json", to_json(config))
    return path


def read_cache(path: Path) -> DelphiCache:
    """Read the folder of one hook point.

    Raises:
        InterpretError: it holds no cache, or its files do not fit together.
    """
    files = sorted(
        (int(match[1]), file) for file in path.glob("*.safetensors") if (match := _SPLIT.fullmatch(file.name))
    )
    if not files:
        raise InterpretError(
            f"'{path}' holds no cache of Delphi (START_END.safetensors); give a folder below latents/."
        )
    rows, columns, values, tokens = [], [], [], np.zeros((0, 0), np.int64)
    try:
        for start, file in files:
            found = load_file(file)
            locations, tokens = found["locations"].astype(np.int64), found["tokens"].astype(np.int64)
            rows.append(locations[:, 0] * tokens.shape[1] + locations[:, 1])
            columns.append(locations[:, 2] + start)
            values.append(found["activations"].astype(np.float32))
        n_features = int(_SPLIT.fullmatch(files[-1][1].name)[2]) + 1  # pyright: ignore[reportOptionalSubscript]
        shape = (tokens.size, n_features)
        matrix = csr_array((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=shape)
        config = from_json((path / "config.json").read_bytes())
        return DelphiCache(tokens, matrix, str(config["model_name"]))
    except (OSError, SafetensorError, KeyError, ValueError, IndexError, TypeError) as error:
        raise InterpretError(f"'{path}' is no cache that Delphi wrote ({type(error).__name__}: {error}).") from None


def write_explanations(folder: Path, hook_name: str, texts: Mapping[int, str]) -> Path:
    """Write one file per feature, as Delphi's explainers do."""
    path = folder / "explanations"
    path.mkdir(parents=True, exist_ok=True)
    for feature, text in texts.items():
        write_text(path / f"{hook_name}_latent{feature}.txt", json.dumps(text, ensure_ascii=False))
    return path


def read_explanations(path: Path) -> dict[int, str]:
    """Read a folder of explanations of one hook point, by feature.

    Raises:
        InterpretError: there are none, or they are of several hook points, or one is no JSON text.
    """
    found: dict[int, str] = {}
    hooks: set[str] = set()
    for file in sorted(path.glob("*.txt")):
        match = _NAME.fullmatch(file.name)
        if match is None:
            continue
        hooks.add(match["hook"])
        try:
            text = from_json(file.read_bytes())
        except ValueError:
            raise InterpretError(f"'{file}' is no JSON text; Delphi's explanations are.") from None
        if not isinstance(text, str):
            raise InterpretError(f"'{file}' is no JSON text; Delphi's explanations are.")
        found[int(match["feature"])] = cleaned(text)
    if len(hooks) != 1:
        what = f"those of {', '.join(sorted(hooks))}" if hooks else "none"
        raise InterpretError(
            f"'{path}' should hold explanations of one hook point (HOOK_latentN.txt), but holds {what}."
        )
    return found


def write_scores(folder: Path, hook_name: str, evidence: Evidence, scored: Sequence[Scored], threshold: float) -> Path:
    """Write detection scores, as Delphi's detection scorer does; the texts of private studies are empty."""
    path = folder / "scores" / "detection"
    path.mkdir(parents=True, exist_ok=True)
    for one in scored:
        rows: list[dict[str, Any]] = []
        for example, found in zip(one.examples, one.judgements, strict=True):
            study = evidence.corpus.studies[evidence.corpus.units[example.unit].study]
            text = show(evidence.corpus, example.unit).text if study.shareable else ""
            says = None if found.probability is None else found.probability >= threshold
            rows.append(
                {
                    "str_tokens": [text],
                    "activations": [round(example.strength, 6)],
                    "distance": 0 if example.is_on else -1,
                    "activating": example.is_on,
                    "prediction": says,
                    "correct": says is not None and says == example.is_on,
                    "probability": found.probability,
                }
            )
        write_text(path / f"{hook_name}_latent{one.feature}.txt", json.dumps(rows, ensure_ascii=False))
    return path


def read_scores(path: Path) -> dict[int, float]:
    """Balanced accuracy of each feature, from a folder of scores; a text without prediction counts as wrong.

    Raises:
        InterpretError: a file is not what Delphi's detection scorer writes.
    """
    found: dict[int, float] = {}
    for file in sorted(path.glob("*.txt")):
        match = _NAME.fullmatch(file.name)
        if match is None:
            continue
        try:
            rows = from_json(file.read_bytes())
            sides = [
                [bool(row["correct"]) for row in rows if bool(row["activating"]) is side] for side in (True, False)
            ]
        except (ValueError, KeyError, TypeError):
            raise InterpretError(f"'{file}' is no list of scores as Delphi writes them.") from None
        shares = [sum(side) / len(side) if side else np.nan for side in sides]
        found[int(match["feature"])] = float(sum(shares) / 2)
    return found


def strengths_of(cache: DelphiCache) -> Float[np.ndarray, "n_rows n_features"]:
    """Each feature's strongest activation in each row of a cache."""
    n_rows, context_size = cache.tokens.shape
    coordinates = cache.activations.tocoo()
    strongest = np.zeros((n_rows, n_columns(cache.activations)))
    np.maximum.at(strongest, (coordinates.row // context_size, coordinates.col), coordinates.data)
    return strongest
