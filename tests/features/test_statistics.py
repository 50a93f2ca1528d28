"""Statistics that are computed in chunks, against plain formulas."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens_maira.data.study import Label, TokenKind
from sae_lens_maira.features import labels as labels_module
from sae_lens_maira.features import statistics
from sae_lens_maira.features.labels import fit_labels
from sae_lens_maira.features.sparse import transposed
from sae_lens_maira.features.statistics import (
    BestOfEach,
    count_firings,
    decoder_neighbors,
    logit_effects,
    partners,
    strongest,
)
from sae_lens_maira.measures.ranking import auroc
from tests.features.sparse_matrices import matrices, write


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Makes chunks small, so that several have to be joined."""
    monkeypatch.setattr(statistics, "_BUFFER", 3)
    monkeypatch.setattr(statistics, "_CHUNK", 4)
    monkeypatch.setattr(labels_module, "_CHUNK", 2)


@settings(deadline=None, max_examples=60)
@given(dense=matrices, data=st.data())
def test_counts_and_histograms(tmp_path_factory, dense, data):
    kinds = np.array(data.draw(st.lists(st.integers(0, 11), min_size=len(dense), max_size=len(dense))), np.uint8)
    counts = count_firings(write(dense, tmp_path_factory.mktemp("f")), kinds, n_bins=5)
    assert np.array_equal(counts.n_firing, (dense > 0).sum(0))
    assert np.array_equal(counts.largest, dense.max(0, initial=0))
    for feature, column in enumerate(dense.T):
        active = column[column > 0]
        assert counts.mean[feature] == pytest.approx(active.mean() if len(active) else 0)
        assert counts.by_kind[feature].tolist() == [int((kinds[column > 0] == kind).sum()) for kind in TokenKind]
        expected = [0] * 5
        for value in active:
            expected[min(int(value / active.max() * 5), 4)] += 1
        assert counts.histogram[feature].tolist() == expected


@settings(deadline=None, max_examples=60)
@given(dense=matrices, k=st.integers(1, 4), data=st.data())
def test_the_strongest_rows_of_each_feature(tmp_path_factory, dense, k, data):
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=len(dense), max_size=len(dense))), bool)
    items, scores = strongest(write(dense, tmp_path_factory.mktemp("f")), k, keep)
    for feature, column in enumerate(dense.T):
        rows = sorted((row for row in np.flatnonzero(column) if keep[row]), key=lambda row: (-column[row], row))[:k]
        assert items[feature].tolist() == rows + [-1] * (k - len(rows))
        assert scores[feature].tolist() == [column[row] for row in rows] + [0.0] * (k - len(rows))


def test_the_best_of_a_long_stream():
    rng = np.random.default_rng(0)
    best, everything = BestOfEach(5, 3), []
    for start in range(0, 600, 20):
        features, scores = rng.integers(0, 5, 20), rng.random(20).astype(np.float32)
        best.add(features, np.arange(start, start + 20), scores)
        everything += list(zip(features, scores, range(start, start + 20), strict=True))
    items, _ = best.finish()
    for feature in range(5):
        own = sorted((-score, item) for found, score, item in everything if found == feature)
        assert items[feature].tolist() == [item for _, item in own[:3]]


@settings(deadline=None, max_examples=60)
@given(dense=matrices)
def test_partners_against_sets(tmp_path_factory, dense):
    groups = np.arange(dense.shape[1]) // 2
    firings = write(dense, tmp_path_factory.mktemp("f"))
    by_feature = transposed(firings, tmp_path_factory.mktemp("t"))
    found = list(partners(firings, by_feature, groups, k=3, min_share=0.5, min_tokens=2, min_lift=1.2))
    sets = [set(np.flatnonzero(column)) for column in dense.T]
    for feature, own in enumerate(sets):
        together = [
            (other, len(own & its) / len(own | its), len(own & its))
            for other, its in enumerate(sets)
            if other != feature and own & its
        ]
        together.sort(key=lambda entry: (-entry[1], entry[0]))
        assert found[feature].together == [(j, pytest.approx(jaccard), n) for j, jaccard, n in together[:3]]
        density = len(own) / max(len(dense), 1)
        inside = {
            other: len(own & its) / len(its)
            for other, its in enumerate(sets)
            if groups[other] > groups[feature] and len(its) >= 2 and own & its
        }
        inside = {j: share for j, share in inside.items() if share >= 0.5 and share >= 1.2 * density}
        assert len(found[feature].inside) == min(len(inside), 3)
        for other, share in found[feature].inside:
            assert share == pytest.approx(inside[other])


def test_neighbours_and_logits_in_chunks():
    torch.manual_seed(0)
    decoder, unembedding = torch.randn(10, 6), torch.randn(6, 20)
    indices, cosines = decoder_neighbors(decoder, 3)
    effects = logit_effects(decoder, unembedding, 4)
    for feature in range(10):
        similar = [float(torch.cosine_similarity(decoder[feature], row, dim=0)) for row in decoder]
        order = sorted((j for j in range(10) if j != feature), key=lambda j: -similar[j])[:3]
        assert indices[feature].tolist() == order
        assert cosines[feature] == pytest.approx([similar[j] for j in order], abs=1e-6)
        logits = (decoder[feature] @ unembedding).tolist()
        ranked = sorted(range(20), key=lambda token: -logits[token])
        assert effects.promoted[feature].tolist() == ranked[:4]
        assert effects.suppressed[feature].tolist() == ranked[::-1][:4]
        assert effects.promoted_by[feature] == pytest.approx([logits[t] for t in ranked[:4]], abs=1e-5)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.0, 1.0, 2.0]), st.booleans()), min_size=2, max_size=12).filter(
        lambda pairs: len({positive for _, positive in pairs}) == 2
    )
)
def test_the_area_under_the_curve_counts_pairs(pairs):
    scores, positive = (np.array(column) for column in zip(*pairs, strict=True))
    wins = [
        1.0 if high > low else 0.5 if high == low else 0.0
        for (high, yes), (low, no) in itertools.product(pairs, pairs)
        if yes and not no
    ]
    assert auroc(scores[:, None], positive[:, None])[0, 0] == pytest.approx(np.mean(wins))


def test_labels_leave_out_studies_that_say_nothing_of_them(tmp_path):
    """Feature 0 separates ``seen`` only if studies that lack this label are left out."""
    n = 6
    scores = np.zeros((3 * n, 3), np.float32)
    scores[:n, 0] = 2.0
    scores[2 * n :, 0] = 5.0
    scores[:, 1] = 1.0
    known = [{"seen": Label("uncertain")}] * n + [{"seen": Label("absent")}] * n + [{"rare": Label("present")}] * n
    found = fit_labels(transposed(write(scores, tmp_path / "rows"), tmp_path / "columns"), known)
    assert [(fit.label, fit.auroc, fit.n_positive) for fit in found[0]] == [("seen", 1.0, n)]
    assert found[1] == found[2] == []
