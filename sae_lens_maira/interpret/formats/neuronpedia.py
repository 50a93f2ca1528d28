"""Neuronpedia's batches of explanations: ``batch-N.jsonl.gz`` with one object per explanation."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path

from sae_lens_maira.files import replacing
from sae_lens_maira.interpret.scoring import Scored

_BATCH = 256
_TYPE = "np_max-act"
"""Neuronpedia's name for explanations that were made from the strongest activations."""


def write_batches(
    folder: Path, scored: Mapping[int, Scored], *, model_id: str, layer: str, judge: str, all_shareable: bool = True
) -> list[Path]:
    """Write explanations, and in their notes the scores.

    Args:
        folder: of the batches.
        scored: by feature.
        model_id: Neuronpedia's name of the model.
        layer: Neuronpedia's name of the SAE, such as ``15-maira-2-sae``.
        judge: who scored.
        all_shareable: whether all studies may be shared; if not, explanations that a model wrote are left out, because
            they may quote a report.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = [one for _, one in sorted(scored.items()) if all_shareable or one.explanation.author == "rule"]
    paths: list[Path] = []
    for number, start in enumerate(range(0, len(kept), _BATCH)):
        path = folder / f"batch-{number}.jsonl.gz"
        lines = [json.dumps(_record(one, model_id, layer, judge)) for one in kept[start : start + _BATCH]]
        with replacing(path) as file, gzip.GzipFile(fileobj=file, mode="wb", mtime=0, filename="") as packed:
            packed.write("".join(f"{line}\n" for line in lines).encode())
        paths.append(path)
    return paths


def _record(one: Scored, model_id: str, layer: str, judge: str) -> dict[str, str | None]:
    author = one.explanation.author
    return {
        "id": f"{model_id}_{layer}_{one.feature}_{author}",
        "modelId": model_id,
        "layer": layer,
        "index": str(one.feature),
        "description": one.explanation.text,
        "authorId": None,
        "embedding": None,
        "triggeredById": None,
        "typeName": _TYPE,
        "explanationModelName": author,
        "notes": f"balanced accuracy on other patients {one.detection.balanced_accuracy}, judged by {judge}",
        "createdAt": None,
    }
