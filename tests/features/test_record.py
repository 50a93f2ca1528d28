"""One feature's record against the SAE and the model themselves."""

import numpy as np
import pytest

from sae_lens_maira.activations.live import LiveActivations
from sae_lens_maira.data.study import SECTIONS, TokenKind
from sae_lens_maira.features.record import feature_record
from sae_lens_maira.features.recording import record
from sae_lens_maira.features.subject import Subject
from sae_lens_maira.features.table import compute_table
from tests.dashboard.small_gallery import (
    ALWAYS,
    CONTEXT_SIZE,
    DEAD,
    HOOK,
    N_STUDIES,
    Made,
    make_model,
    make_sae,
    make_studies,
    plain_firings,
)

N_EXAMPLES = 5


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    model = make_model(make_studies())
    stream = LiveActivations(model, [HOOK], context_size=CONTEXT_SIZE)
    return Subject(make_sae(model), model, record(stream, HOOK, tmp_path_factory.mktemp("recording")))


@pytest.fixture(scope="module")
def shown():
    mask = np.ones(N_STUDIES, dtype=bool)
    mask[[0, 3, 7]] = False
    return mask


@pytest.fixture(scope="module")
def table(subject, shown, tmp_path_factory):
    labels = [study.labels for study in make_studies()]
    scratch = tmp_path_factory.mktemp("table")
    return compute_table(subject, labels, shown, scratch, n_examples=N_EXAMPLES, show_progress=False)


@pytest.fixture(scope="module")
def firings(subject):
    studies = make_studies()
    made = Made(subject.sae, subject.model, studies, None, None)  # pyright: ignore[reportArgumentType]
    return plain_firings(made)


@pytest.mark.parametrize("feature", [2, 5, 40, ALWAYS, DEAD])
def test_examples_are_the_strongest_studies_and_silent_ones_do_not_fire(subject, table, firings, shown, feature):
    studies = make_studies()
    found = feature_record(subject, table, feature, studies, shown=shown, n_silent=4)
    maxima = np.array([own[:, feature].max() for own in firings])
    expected = [study for study in np.argsort(-maxima, kind="stable") if maxima[study] > 0 and shown[study]]
    assert [example.study_index for example in found.examples] == expected[:N_EXAMPLES]
    silent = {study for study in range(N_STUDIES) if maxima[study] <= 0 and shown[study]}
    assert {example.study_index for example in found.silent} <= silent
    assert len(found.silent) == min(len(silent), 4)
    for example in (*found.examples, *found.silent):
        study = studies[example.study_index]
        column = firings[example.study_index][:, feature]
        assert example.activations == pytest.approx(column, rel=1e-4, abs=1e-5)
        assert example.maximum == pytest.approx(column.max(), rel=1e-4)
        tokens = subject.model.reader.rows([example.study_index], None)[0, :CONTEXT_SIZE].tolist()
        assert example.texts == subject.model.tokenizer.row_to_texts(tokens)
        assert (example.study_id, example.shareable) == (study.study_id, study.shareable)
        assert example.has_prior == (study.prior_frontal is not None)
        assert set(example.images) == {"frontal"} | {
            view for view in ("lateral", "prior_frontal") if getattr(study, view) is not None
        }
        assert example.images["frontal"] is not None


def test_each_token_has_its_kind_and_section(subject, table):
    studies = make_studies()
    (example, *_) = feature_record(subject, table, ALWAYS, studies).examples
    assert example.kinds[0] == TokenKind.FRONTAL_IMAGE
    assert example.sections[0] is None
    named = [section for section in example.sections if section is not None]
    assert set(named) <= set(SECTIONS)
    assert named == sorted(named, key=SECTIONS.index)
    text = "".join(t for t, section in zip(example.texts, example.sections, strict=True) if section == "indication")
    assert text.split() == (studies[example.study_index].indication or "").split()


def test_the_draw_of_silent_examples_follows_the_seed(subject, table):
    def silent(feature: int, seed: int) -> list[int]:
        found = feature_record(subject, table, feature, make_studies(), n_silent=3, seed=seed)
        return [example.study_index for example in found.silent]

    assert silent(DEAD, 0) == silent(DEAD, 0)
    assert len({tuple(silent(DEAD, seed)) for seed in range(5)}) > 1


def test_the_table_as_pandas_has_a_row_per_feature(table):
    frame = table.to_pandas()
    assert frame.index.tolist() == list(range(table.n_features))
    assert frame["n_firing"].tolist() == table.counts.n_firing.tolist()
    assert (frame["density"] * table.firings.shape[0]).round().tolist() == table.counts.n_firing.tolist()
    kinds = [name for name in frame if name.startswith("n_") and name != "n_firing"]
    assert (frame[kinds].sum(axis=1) == frame["n_firing"]).all()
    for feature, fits in enumerate(table.labels):
        label, auroc = frame.loc[feature, ["label", "auroc"]]
        if fits:
            assert (label, auroc) == (fits[0].label, fits[0].auroc)
        else:
            assert frame.loc[feature, ["label", "auroc"]].isna().all()
