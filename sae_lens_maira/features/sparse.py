"""Sparse matrices on disk: which features fire at each token, and how strongly.

A matrix is a ``scipy.sparse.csr_array`` whose column numbers and values are memory-mapped; only the offsets of its rows
are in memory. Entries are positive, and columns ascend within a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Float, Integer
from scipy.sparse import csr_array

from sae_lens_maira.files import reserve

CHUNK = 1 << 22
"""Entries that are processed at a time."""


def n_rows(matrix: csr_array) -> int:
    """Number of rows."""
    return len(matrix.indptr) - 1


def n_columns(matrix: csr_array) -> int:
    """Number of columns."""
    shape: Any = matrix.shape
    return int(shape[1])


def chunks(matrix: csr_array, size: int = CHUNK) -> Iterator[tuple[int, int]]:
    """Ranges of rows of about ``size`` entries each; a longer row is a range of its own."""
    offsets, end, start = matrix.indptr, n_rows(matrix), 0
    while start < end:
        stop = int(np.searchsorted(offsets, int(offsets[start]) + size, side="right")) - 1
        stop = min(max(stop, start + 1), end)
        yield start, stop
        start = stop


def entries(
    matrix: csr_array, start: int, stop: int
) -> tuple[Integer[np.ndarray, " n"], Integer[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Row numbers, columns and values of all entries of rows ``start`` to ``stop``."""
    first, last = matrix.indptr[start], matrix.indptr[stop]
    numbers = np.repeat(np.arange(start, stop), np.diff(matrix.indptr[start : stop + 1]))
    return numbers, np.asarray(matrix.indices[first:last]), np.asarray(matrix.data[first:last])


def row(matrix: csr_array, index: int) -> tuple[Integer[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Columns and values of one row."""
    return entries(matrix, index, index + 1)[1:]


def count_columns(
    matrix: csr_array, rows: Integer[np.ndarray, " n"], size: int = CHUNK
) -> Integer[np.ndarray, " n_columns"]:
    """Number of entries of each column, counted over the given rows."""
    width = n_columns(matrix)
    counts = np.zeros(width, dtype=np.int64)
    ends = np.cumsum(matrix.indptr[rows + 1] - matrix.indptr[rows], dtype=np.int64)
    start = 0
    while start < len(rows):
        done = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, done + size, side="right")), start + 1)
        counts += np.bincount(matrix[rows[start:stop]].indices, minlength=width)
        start = stop
    return counts


def transposed(matrix: csr_array, folder: Path) -> csr_array:
    """The transposed matrix, written to a folder piece by piece."""
    width = n_columns(matrix)
    counts = np.zeros(width, dtype=np.int64)
    for start, stop in chunks(matrix):
        counts += np.bincount(entries(matrix, start, stop)[1], minlength=width)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    columns, values = _mapped(folder, matrix.nnz)
    filled = offsets[:-1].copy()
    for start, stop in chunks(matrix):
        numbers, own_columns, found = entries(matrix, start, stop)
        order = np.argsort(own_columns, kind="stable")
        in_order = own_columns[order]
        own = np.bincount(in_order, minlength=width)
        within = np.arange(len(order)) - np.repeat(np.cumsum(own) - own, own)
        places = filled[in_order] + within
        columns[places], values[places] = numbers[order], found[order]
        filled += own
    return _matrix(offsets, columns, values, n_rows(matrix))


class SparseWriter:
    """Writes the rows of a matrix to a folder, in order.

    Args:
        folder: where the matrix is written.
        n_columns: number of columns of the matrix.
    """

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
        """Append rows: the number of entries of each row, and the columns and values of all entries."""
        self._counts.append(counts.astype(np.int64))
        self._columns.write(np.ascontiguousarray(columns, dtype=np.int32).tobytes())
        self._values.write(np.ascontiguousarray(values, dtype=np.float32).tobytes())

    def finish(self) -> csr_array:
        """Close the files and map them."""
        self.__exit__(None, None, None)
        offsets = np.concatenate([[0], np.cumsum(np.concatenate([np.zeros(0, np.int64), *self._counts]))])
        columns, values = _mapped(self._folder, int(offsets[-1]), mode="r")
        return _matrix(offsets, columns, values, self._n_columns)


def _matrix(offsets: np.ndarray, columns: np.ndarray, values: np.ndarray, n_columns: int) -> csr_array:
    # Plain views, because scipy cannot handle the base of a memory map. Offsets have the type of the columns, because
    # scipy would copy the columns to a wider type of offsets; from 2**31 entries on, that copy is necessary.
    few = offsets[-1] < 2**31
    parts: Any = (np.asarray(values), np.asarray(columns), offsets.astype(np.int32) if few else offsets)
    return csr_array(parts, shape=(len(offsets) - 1, n_columns))


def _mapped(folder: Path, n_entries: int, mode: str = "w+") -> tuple[np.ndarray, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    if n_entries == 0:
        return np.zeros(0, np.int32), np.zeros(0, np.float32)
    shape = (n_entries,)
    if mode == "w+":
        # A page of a map that finds no room on the disk would kill the process.
        for name in ("columns.i4", "values.f4"):
            reserve(folder / name, 4 * n_entries)
        mode = "r+"
    columns = np.memmap(folder / "columns.i4", np.int32, mode=mode, shape=shape)  # pyright: ignore[reportCallIssue, reportArgumentType]
    values = np.memmap(folder / "values.f4", np.float32, mode=mode, shape=shape)  # pyright: ignore[reportCallIssue, reportArgumentType]
    return columns, values
