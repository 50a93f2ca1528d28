"""Small matrices for property tests, and how they are written."""

from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.sparse import csr_array

from sae_lens_maira.features.sparse import SparseWriter

matrices = st.tuples(st.integers(0, 9), st.integers(1, 7)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.sampled_from([0.0, 0.0, 0.5, 1.0, 2.5]))
)


def write(dense: np.ndarray, folder: Path, cut: int = 3) -> csr_array:
    with SparseWriter(folder, dense.shape[1]) as writer:
        for start in range(0, len(dense), cut):
            part = dense[start : start + cut]
            rows, columns = np.nonzero(part)
            writer.append(np.bincount(rows, minlength=len(part)), columns, part[rows, columns])
        return writer.finish()
