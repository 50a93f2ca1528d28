"""Sparse rows on disk against dense matrices."""

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens_maira.features.sparse import SparseRows
from tests.features.sparse_matrices import matrices, write


def dense_of(sparse: SparseRows) -> np.ndarray:
    dense = np.zeros((sparse.n_rows, sparse.n_columns), np.float32)
    rows, columns, values = sparse.rows(0, sparse.n_rows)
    dense[rows, columns] = values
    return dense


@settings(deadline=None, max_examples=60)
@given(matrices, st.integers(1, 5))
def test_rows_and_their_transpose_hold_the_matrix(dense, cut):
    with tempfile.TemporaryDirectory() as name:
        sparse = write(dense, Path(name) / "rows", cut)
        assert np.array_equal(dense_of(sparse), dense)
        transposed = sparse.transposed(Path(name) / "columns")
        assert np.array_equal(dense_of(transposed), dense.T)
        assert all(np.all(np.diff(transposed.row(row)[0]) > 0) for row in range(transposed.n_rows))


@settings(deadline=None, max_examples=60)
@given(matrices, st.integers(1, 6), st.data())
def test_columns_of_any_rows_come_in_pieces(dense, size, data):
    chosen = data.draw(st.lists(st.integers(0, max(len(dense) - 1, 0)), max_size=6)) if len(dense) else []
    with tempfile.TemporaryDirectory() as name:
        sparse = write(dense, Path(name))
        found = [column for piece in sparse.columns_of(np.array(chosen, np.int64), size) for column in piece]
        assert found == [column for row in chosen for column in np.flatnonzero(dense[row])]
        covered = [row for start, stop in sparse.chunks(size) for row in range(start, stop)]
        assert covered == list(range(len(dense)))
