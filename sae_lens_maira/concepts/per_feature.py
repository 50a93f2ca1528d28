"""What every latent detects best, and the scores of all latents for all items."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from jaxtyping import Bool, Float32

from sae_lens_maira.concepts.choice import POOLS, ChoiceBlock, Pick
from sae_lens_maira.concepts.exam import Exam, Item
from sae_lens_maira.concepts.pooled import PooledBlock, rank
from sae_lens_maira.concepts.ranked import auroc, f1_at, precision

ASPECTS: dict[str, Callable[[Item], bool]] = {
    "concept": lambda item: item.question.kind != "change",
    "image": lambda item: item.question.kind != "change" and item.region == "images",
    "change": lambda item: item.question.kind == "change",
}
"""What is told of every latent: its best concept, its best concept at the image tokens alone, and its best change."""
_SCHEMA = pa.schema(
    {
        "feature": pa.int32(),
        "concept": pa.string(),
        "region": pa.string(),
        "pool": pa.string(),
        "choice_auroc": pa.float32(),
        "auroc": pa.float32(),
        "average_precision": pa.float32(),
        "f1": pa.float32(),
    }
)


class BestOfEachFeature:
    """Collects the best item of every feature for each aspect, on the choosing half.

    Args:
        exam: the items.
    """

    def __init__(self, exam: Exam) -> None:
        self._items = {
            name: np.array([item.number for item in exam.items if belongs(item)], dtype=np.int64)
            for name, belongs in ASPECTS.items()
        }
        self.picks: dict[str, list[Pick]] = {name: [] for name in ASPECTS}

    def add(self, found: ChoiceBlock, _: PooledBlock) -> None:
        """Look at a block; features that rank no item better than chance have no pick."""
        for name, items in self._items.items():
            if not len(items):
                continue
            own = found.auroc[:, items]
            for row, best in enumerate(own.argmax(axis=1).tolist()):
                area = float(own[row, best])
                if area > 0.5:
                    item = int(items[best])
                    pool = POOLS[int(found.pool[row, item])]
                    self.picks[name].append(Pick(item, int(found.features[row]), pool, area))


class EveryScore:
    """Writes the scores of every feature for every item: one row per feature, question and region.

    AUROC and average precision are those of the scoring half, and so is F1, at the threshold that the choosing half
    gave. The pool is the one with the larger AUROC on the choosing half.

    Args:
        file: a Parquet file; it has the name ``path`` only while it is complete.
        exam: the items.
    """

    def __init__(self, path: Path, exam: Exam) -> None:
        self._path, self._exam = path, exam
        self._unfinished = path.with_name(f".{path.name}.tmp")

    def __enter__(self) -> EveryScore:
        self._writer = pyarrow.parquet.ParquetWriter(self._unfinished, _SCHEMA)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._writer.close()
        if kind is None:
            self._unfinished.replace(self._path)
        else:
            self._unfinished.unlink(missing_ok=True)

    def add(self, found: ChoiceBlock, block: PooledBlock) -> None:
        """Score a block."""
        exam, items = self._exam, self._exam.items
        scores = {name: np.zeros(found.auroc.shape, dtype=np.float32) for name in ("auroc", "average", "f1")}
        for reading in exam.readings:
            for number, pool in enumerate(POOLS):
                ranked = rank(block, exam.segments, reading.segments, reading.n_tokens, pool)
                halves = ranked.only(exam.is_choice), ranked.only(~exam.is_choice)
                for item in (item for group in reading.groups for item in group):
                    here = found.pool[:, item.number] == number
                    train, test = item.asked & exam.is_choice, item.asked & ~exam.is_choice
                    at = precision(halves[0], train, item.positive).threshold
                    _put(scores["auroc"], item, here, auroc(halves[1], test, item.positive[:, None])[:, 0])
                    _put(scores["average"], item, here, precision(halves[1], test, item.positive).average)
                    _put(scores["f1"], item, here, f1_at(halves[1], test, item.positive, at))
        n_features, n_items = found.auroc.shape
        names = {
            "concept": [item.question.name for item in items],
            "region": [item.region for item in items],
        }
        columns = {
            "feature": pa.array(np.repeat(found.features, n_items), pa.int32()),
            **{name: _coded(np.tile(np.arange(n_items), n_features), values) for name, values in names.items()},
            "pool": _coded(found.pool.reshape(-1), list(POOLS)),
            "choice_auroc": pa.array(found.auroc.reshape(-1)),
            "auroc": pa.array(scores["auroc"].reshape(-1)),
            "average_precision": pa.array(scores["average"].reshape(-1)),
            "f1": pa.array(scores["f1"].reshape(-1)),
        }
        self._writer.write_table(pa.table(columns, schema=_SCHEMA))


def _put(
    scores: Float32[np.ndarray, "n_features n_items"],
    item: Item,
    here: Bool[np.ndarray, " n_features"],
    found: np.ndarray,
) -> None:
    scores[here, item.number] = found[here]


def _coded(codes: np.ndarray, values: list[str]) -> pa.Array:
    return pa.array(values, pa.string()).take(pa.array(codes, pa.int32()))
