"""Sparse matrices on disk against dense ones."""

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from sae_lens_maira.features.sparse import chunks, count_columns, entries, n_columns, n_rows, row, transposed
from tests.features.sparse_matrices import matrices, write


def dense_of(sparse: csr_array) -> np.ndarray:
    dense = np.zeros((n_rows(sparse), n_columns(sparse)), np.float32)
    rows, columns, values = entries(sparse, 0, n_rows(sparse))
    dense[rows, columns] = values
    return dense


def is_mapped(values: np.ndarray) -> bool:
    while isinstance(values, np.ndarray) and not isinstance(values, np.memmap):
        values = values.base  # pyright: ignore[reportAssignmentType]
    return isinstance(values, np.memmap)


@settings(deadline=None, max_examples=60)
@given(matrices, st.integers(1, 5))
def test_rows_and_their_transpose_hold_the_matrix(dense, cut):
    with tempfile.TemporaryDirectory() as name:
        sparse = write(dense, Path(name) / "rows", cut)
        assert np.array_equal(dense_of(sparse), dense)
        by_column = transposed(sparse, Path(name) / "columns")
        assert np.array_equal(dense_of(by_column), dense.T)
        assert all(np.all(np.diff(row(by_column, index)[0]) > 0) for index in range(n_rows(by_column)))


@settings(deadline=None, max_examples=60)
@given(matrices, st.integers(1, 6), st.data())
def test_columns_of_any_rows_are_counted_in_pieces(dense, size, data):
    chosen = data.draw(st.lists(st.integers(0, max(len(dense) - 1, 0)), max_size=6)) if len(dense) else []
    with tempfile.TemporaryDirectory() as name:
        sparse = write(dense, Path(name))
        counts = count_columns(sparse, np.array(chosen, np.int64), size)
        assert counts.tolist() == (dense[chosen] > 0).sum(axis=0).tolist()
        covered = [index for start, stop in chunks(sparse, size) for index in range(start, stop)]
        assert covered == list(range(len(dense)))


def test_entries_stay_on_disk(tmp_path):
    sparse = write(np.eye(5, dtype=np.float32), tmp_path / "rows")
    for matrix in (sparse, transposed(sparse, tmp_path / "columns")):
        assert is_mapped(matrix.indices)
        assert is_mapped(matrix.data)
