"""A whole run on a tiny model: its numbers against the model, the SAE and plain loops; resuming; refusals."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch

from sae_lens_maira import phantom
from sae_lens_maira.cli.main import main
from sae_lens_maira.concepts.config import ConceptConfig, first_unseen_study
from sae_lens_maira.concepts.exam import halves
from sae_lens_maira.concepts.run import ConceptRun
from sae_lens_maira.concepts.settings import CONTROLS, ConceptSettings
from sae_lens_maira.data.listed import as_source
from sae_lens_maira.data.source import OpeniConfig, PhantomConfig
from sae_lens_maira.data.study import IMAGE_KINDS, Label
from sae_lens_maira.errors import ResultError, SaeMismatch
from sae_lens_maira.results import read_result
from sae_lens_maira.rows.policy import TokenPolicy
from tests.concepts.test_ranked import pair_auroc, threshold_scores
from tests.dashboard.small_gallery import HOOK, make_model, make_sae
from tests.plain_maira2 import still

N = 24
POLICY = TokenPolicy(image_tokens="all", template="keep")
SETTINGS = ConceptSettings(
    min_studies=2,
    n_resamples=20,
    frozen_decoder_steps=2,
    regions=("images", "image_ends", "indication", "findings", "findings_elsewhere"),
    controls=CONTROLS,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> ConceptRun:
    studies = [still(study) for study in phantom.studies(N, seed=5)]
    model = make_model(studies)
    sae = make_sae(model)
    path = tmp_path_factory.mktemp("sae")
    sae.save_model(path)
    bound = model.with_studies(as_source(studies), POLICY)
    config = ConceptConfig(concepts=SETTINGS, policy=POLICY)
    return ConceptRun(sae, path, bound, config, range(N), show_progress=False)


@pytest.fixture(scope="module")
def out(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    run.write(folder)
    return folder


@pytest.fixture(scope="module")
def activations(run) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each study's activations from a forward pass of its own, and the kinds of its tokens."""
    found = []
    for index in range(N):
        rows = run.model.reader.rows([index], None)
        with torch.no_grad():
            own = run.model.run_with_cache(rows, names_filter=HOOK)[1][HOOK][0]
        row = run.model.reader.encode_study(run.model.studies[index], index)[1]
        found.append((own.numpy(), row.kinds))
    return found


def tokens_of(region: str, kinds: np.ndarray) -> np.ndarray:
    """The tokens of a region of one study; the first token of a row is the frontal image's last."""
    if region == "images":
        return np.flatnonzero(np.isin(kinds, IMAGE_KINDS))
    others = [np.flatnonzero(kinds == kind)[-1:] for kind in IMAGE_KINDS[1:]]
    return np.concatenate([[0], *others])


def pooled(values: list[np.ndarray], kinds: list[np.ndarray], region: str, pool: str) -> np.ndarray:
    """One number per study."""
    own = [value[tokens_of(region, kind)] for value, kind in zip(values, kinds, strict=True)]
    return np.array([part.max() if pool == "max" else part.mean() for part in own])


def test_latents_and_coordinates_against_plain_loops(run, out, activations) -> None:
    result = read_result(out)
    rows = [row for row in result.table("concepts").to_pylist() if row["region"] in ("images", "image_ends")]
    studies = list(run.model.studies)
    is_choice = halves([study.patient_id for study in studies], 0.5, 0)
    kinds = [kind for _, kind in activations]
    with torch.no_grad():
        scale = run.sae.W_dec.norm(dim=-1).numpy()
        latents = [run.sae.encode(torch.from_numpy(own)).numpy() * scale for own, _ in activations]
    coordinates = [np.concatenate([own, -own], axis=1) for own, _ in activations]
    checked = 0
    for row in rows:
        if row["features"] in ("latents", "coordinates") and row["kind"] == "presence":
            values = latents if row["features"] == "latents" else coordinates
            one = pooled([own[:, row["feature"]] for own in values], kinds, row["region"], row["pool"])
            positive = np.array([study.labels[row["concept"]].positive for study in studies])
            assert row["auroc"] == pytest.approx(pair_auroc(one[~is_choice], positive[~is_choice]), abs=1e-5)
            average, _, _ = threshold_scores(one[~is_choice], positive[~is_choice])
            assert row["average_precision"] == pytest.approx(average, abs=1e-5)
            assert row["choice_auroc"] == pytest.approx(pair_auroc(one[is_choice], positive[is_choice]), abs=1e-5)
            best = max(
                pair_auroc(
                    pooled([own[:, feature] for own in values], kinds, row["region"], pool)[is_choice],
                    positive[is_choice],
                )
                for feature in range(values[0].shape[1])
                for pool in ("max", "mean")
            )
            assert row["choice_auroc"] == pytest.approx(best, abs=1e-5)
            checked += 1
    assert checked >= 16


def test_tables_agree_with_each_other(run, out) -> None:
    result = read_result(out)
    rows = result.table("concepts").to_pylist()
    assert {row["features"] for row in rows} == {"latents", *CONTROLS}
    features = result.table("features").to_pylist()
    assert [row["feature"] for row in features] == list(range(run.sae.cfg.d_sae))
    every = pyarrow.parquet.read_table(out / "scores.parquet").to_pylist()
    by_place = {(row["feature"], row["concept"], row["region"]): row for row in every}
    for row in rows:
        if row["features"] == "latents" and row["region"] != "best_prompt_section":
            own = by_place[row["feature"], row["concept"], row["region"]]
            for name in ("auroc", "average_precision", "f1", "choice_auroc"):
                assert own[name] == pytest.approx(row[name], abs=2e-6)
            beside = [
                other["auroc"]
                for other in rows
                if (other["concept"], other["region"]) == (row["concept"], row["region"])
                and other["features"] not in ("latents", "dense_probe", "bag_of_words")
            ]
            assert row["control_auroc"] == max(beside)
            assert row["above"] == pytest.approx(row["auroc"] - row["control_auroc"], abs=2e-6)
            assert row["auroc_low"] <= row["auroc_high"]
    for row in features:
        if row["concept"] is not None:
            own = [other for other in every if other["feature"] == row["feature"] and ":" not in other["concept"]]
            assert row["choice_auroc"] == pytest.approx(max(other["choice_auroc"] for other in own), abs=2e-6)
            assert row["auroc"] == pytest.approx(
                by_place[row["feature"], row["concept"], row["region"]]["auroc"], abs=2e-6
            )


def test_dead_latents_have_no_concept(out) -> None:
    table = read_result(out).table("features")
    assert table.column("concept")[1].as_py() is None


def test_a_stopped_run_ends_in_the_same_bytes(run, out, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(out / "units", again / "units")
    for name in ("latents", "coordinates", "words", "studies"):
        (again / "units" / f"{name}.json").unlink()
    run.write(again)
    for path in sorted(out.glob("*.*")):
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


def test_other_settings_are_refused(run, out) -> None:
    config = ConceptConfig(concepts=ConceptSettings(n_resamples=21), policy=POLICY)
    other = ConceptRun(run.sae, run.sae_path, run.model, config, range(N), show_progress=False)
    with pytest.raises(ResultError, match=r"other settings \(settings\)"):
        other.write(out)


def test_another_model_is_refused(run, tmp_path: Path) -> None:
    with torch.no_grad():
        weight = run.model.maira2.lm_head.weight
        weight[0] += 1
        try:
            with pytest.raises(SaeMismatch, match="was trained on"):
                run.write(tmp_path)
        finally:
            weight[0] -= 1


def test_studies_of_the_training_are_left_out() -> None:
    trained = PhantomConfig(n_studies=300, seed=3, n_held_out=40)
    assert first_unseen_study(PhantomConfig(n_studies=500, seed=3), trained) == 260
    assert first_unseen_study(PhantomConfig(n_studies=500, seed=4), trained) == 0
    assert first_unseen_study(OpeniConfig(), trained) == 0
    assert first_unseen_study(PhantomConfig(n_studies=500, seed=3), None) == 0


def test_dry_run_and_missing_sae(run, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "sae"
    shutil.copytree(run.sae_path, folder)
    arguments = ["concepts", str(folder), "--out", str(tmp_path / "out"), "--dry-run"]
    assert main(arguments) == 2
    assert "has no config.yaml" in capsys.readouterr().err
    (tmp_path / "c.yaml").write_text("source: {kind: phantom, n_studies: 40, seed: 9}\nconcepts: {min_studies: 3}\n")
    assert main([*arguments, "--config", str(tmp_path / "c.yaml"), "--n_studies", "30"]) == 0
    said = capsys.readouterr().out
    assert "30 studies from index 0 of 30 patients" in said
    assert "Nothing was computed." in said
    assert not (tmp_path / "out").exists()
    assert main(["concepts", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "There is no SAE in" in capsys.readouterr().err


def test_labels_of_any_source_are_questions() -> None:
    """Labels that are not the phantom's: no tree, and changes of each label by itself."""
    from sae_lens_maira.concepts.questions import ask

    labels = [{"edema": Label("present", "new")}, {"edema": Label("absent")}, {}]
    truth = ask(labels, np.array([True, True, False]))
    names = [question.name for question in truth.questions]
    assert names == ["edema", *(f"edema: {change}" for change in ("new", "larger", "smaller", "unchanged", "removed"))]
    assert truth.answers[:, 0].tolist() == [1, 0, -1]
    assert truth.answers[:, 1].tolist() == [1, -1, -1]
    assert truth.answers[:, 5].tolist() == [-1, 0, -1]
