"""Sparse matrices on disk, row by row: which features fire at each token, how strongly.

A :class:`SparseRows` is three arrays: ``offsets`` in memory, ``columns`` and ``values`` memory mapped. Nothing here
grows in memory with the number of columns times the number of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from jaxtyping import Float, Integer

CHUNK = 1 << 22
"""Entries that are worked on at a time."""


@dataclass(frozen=True)
class SparseRows:
    """A matrix of nonnegative entries, stored row by row.

    Args:
        offsets: row r's entries are ``offsets[r]:offsets[r + 1]``.
        columns: of each entry, ascending within a row.
        values: of each entry, positive.
        n_columns: width of the matrix.
    """

    offsets: Integer[np.ndarray, " n_rows_plus_1"]
    columns: Integer[np.ndarray, " n_entries"]
    values: Float[np.ndarray, " n_entries"]
    n_columns: int

    @property
    def n_rows(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_entries(self) -> int:
        return int(self.offsets[-1])

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Columns and values of one row."""
        start, stop = self.offsets[index], self.offsets[index + 1]
        return np.asarray(self.columns[start:stop]), np.asarray(self.values[start:stop])

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Row numbers, columns and values of all entries of some rows."""
        first, last = self.offsets[start], self.offsets[stop]
        numbers = np.repeat(np.arange(start, stop), np.diff(self.offsets[start : stop + 1]))
        return numbers, np.asarray(self.columns[first:last]), np.asarray(self.values[first:last])

    def chunks(self, size: int = CHUNK) -> Iterator[tuple[int, int]]:
        """Ranges of rows of about so many entries each; a longer row is a range of its own."""
        start = 0
        while start < self.n_rows:
            stop = int(np.searchsorted(self.offsets, self.offsets[start] + size, side="right")) - 1
            stop = min(max(stop, start + 1), self.n_rows)
            yield start, stop
            start = stop

    def columns_of(self, rows: Integer[np.ndarray, " n"], size: int = CHUNK) -> Iterator[np.ndarray]:
        """Columns of the entries of any rows, in pieces."""
        counts = self.offsets[rows + 1] - self.offsets[rows]
        ends = np.cumsum(counts)
        start = 0
        while start < len(rows):
            done = ends[start - 1] if start else 0
            stop = max(int(np.searchsorted(ends, done + size, side="right")), start + 1)
            own = counts[start:stop]
            within = np.arange(own.sum()) - np.repeat(np.cumsum(own) - own, own)
            yield self.columns[np.repeat(self.offsets[rows[start:stop]], own) + within]
            start = stop

    def transposed(self, folder: Path) -> SparseRows:
        """The same entries by column, written to a folder."""
        counts = np.zeros(self.n_columns, dtype=np.int64)
        for start, stop in self.chunks():
            counts += np.bincount(self.rows(start, stop)[1], minlength=self.n_columns)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        columns, values = _mapped(folder, len(self.columns))
        filled = offsets[:-1].copy()
        for start, stop in self.chunks():
            numbers, features, found = self.rows(start, stop)
            order = np.argsort(features, kind="stable")
            sorted_features = features[order]
            own = np.bincount(sorted_features, minlength=self.n_columns)
            within = np.arange(len(order)) - np.repeat(np.cumsum(own) - own, own)
            places = filled[sorted_features] + within
            columns[places], values[places] = numbers[order], found[order]
            filled += own
        return SparseRows(offsets, columns, values, self.n_rows)


class SparseWriter:
    """Writes the rows of a :class:`SparseRows` to a folder, in order."""

    def __init__(self, folder: Path, n_columns: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._n_columns = folder, n_columns
        self._columns, self._values = ((folder / name).open("wb") for name in ("columns.i4", "values.f4"))
        self._counts: list[np.ndarray] = []

    def __enter__(self) -> SparseWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._columns.close()
        self._values.close()

    def append(self, counts: np.ndarray, columns: np.ndarray, values: np.ndarray) -> None:
        """Add rows: entries a row, then columns and values of all of them."""
        self._counts.append(counts.astype(np.int64))
        self._columns.write(np.ascontiguousarray(columns, dtype=np.int32).tobytes())
        self._values.write(np.ascontiguousarray(values, dtype=np.float32).tobytes())

    def finish(self) -> SparseRows:
        """Close the files and map them."""
        self.__exit__(None, None, None)
        offsets = np.concatenate([[0], np.cumsum(np.concatenate([np.zeros(0, np.int64), *self._counts]))])
        columns, values = _mapped(self._folder, int(offsets[-1]), mode="r")
        return SparseRows(offsets, columns, values, self._n_columns)


def _mapped(folder: Path, n_entries: int, mode: str = "w+") -> tuple[np.ndarray, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    if n_entries == 0:
        return np.zeros(0, np.int32), np.zeros(0, np.float32)
    shape = (n_entries,)
    columns = np.memmap(folder / "columns.i4", np.int32, mode=mode, shape=shape)  # pyright: ignore[reportCallIssue, reportArgumentType]
    values = np.memmap(folder / "values.f4", np.float32, mode=mode, shape=shape)  # pyright: ignore[reportCallIssue, reportArgumentType]
    return columns, values
