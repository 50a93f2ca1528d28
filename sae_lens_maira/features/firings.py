"""Which features fire at each token: runs the SAE on recorded activations, as sae-dashboard does."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from tqdm.auto import tqdm

from sae_lens_maira.features.recording import Recording
from sae_lens_maira.features.sparse import SparseWriter, entries, n_columns

_DENSE_ENTRIES = 1 << 23


def folded_copy(sae: Any) -> Any:
    """A copy whose decoder rows have norm 1, with the encoder and thresholds scaled to match.

    sae-dashboard and Neuronpedia show activations in this scale, which makes features comparable. The given SAE is not
    changed.
    """
    folded = copy.deepcopy(sae).eval()
    folded.fold_W_dec_norm()
    return folded


@torch.no_grad()
def encode(folded: Any, recording: Recording, folder: Path, *, show_progress: bool = True) -> csr_array:
    """Feature activations of every token, as a sparse matrix (n_tokens, d_sae).

    Args:
        folded: the SAE, as :func:`folded_copy` returns it.
        recording: a recording at the SAE's hook point.
        folder: where the matrix is written.
        show_progress: whether to show a progress bar.
    """
    d_sae = int(folded.cfg.d_sae)
    progress = tqdm(total=recording.n_tokens, desc="features", unit="token", disable=not show_progress)
    with SparseWriter(folder, d_sae) as writer, progress:
        for chunk in recording.chunks(max(_DENSE_ENTRIES // d_sae, 1)):
            activations = folded.encode(chunk.to(folded.device, folded.dtype)).float().cpu()
            tokens, features = (index.numpy() for index in torch.nonzero(activations > 0, as_tuple=True))
            counts = np.bincount(tokens, minlength=len(chunk))
            writer.append(counts, features, activations.numpy()[tokens, features])
            progress.update(len(chunk))
        return writer.finish()


def study_maxima(firings: csr_array, recording: Recording, folder: Path) -> csr_array:
    """Each study's strongest activation of each feature, as a sparse matrix (n_studies, n_features)."""
    return strongest_in(firings, map(recording.tokens, range(recording.n_studies)), folder)


def strongest_in(firings: csr_array, places: Iterable[slice], folder: Path) -> csr_array:
    """Each feature's strongest activation in each of some ranges of tokens, as a sparse matrix (n_places, n_features).

    Args:
        firings: feature activations, tokens by features.
        places: ranges of tokens.
        folder: where the matrix is written.
    """
    with SparseWriter(folder, n_columns(firings)) as writer:
        for tokens in places:
            _, features, values = entries(firings, tokens.start, tokens.stop)
            order = np.argsort(features, kind="stable")
            features, values = features[order], values[order]
            firsts = np.flatnonzero(np.diff(features, prepend=-1))
            largest = np.maximum.reduceat(values, firsts) if len(firsts) else values
            writer.append(np.array([len(firsts)]), features[firsts], largest)
        return writer.finish()
