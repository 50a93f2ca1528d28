"""A whole run: its folder, that it goes on after an interruption, and the verb."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from sae_lens_maira.attribution.run import attribute
from sae_lens_maira.attribution.settings import AttributionConfig
from sae_lens_maira.attribution.work import Work
from sae_lens_maira.cli.main import main
from sae_lens_maira.data.source import PhantomConfig
from sae_lens_maira.errors import AttributionError, Interrupted, ResultError
from sae_lens_maira.hooked import HookedMaira2
from sae_lens_maira.results import Units, read_result
from sae_lens_maira.sources import open_source
from tests.attribution.conftest import random_sae
from tests.plain_maira2 import CHECKPOINTS

CONFIG = AttributionConfig(
    n_studies=10,
    n_controls=2,
    n_resamples=20,
    features=(4,),
    n_map_studies=1,
    views=("frontal", "prior_frontal"),
    methods=("relp", "occlusion"),
    n_next_studies=1,
)


@pytest.fixture(scope="module")
def phantom_model():
    return HookedMaira2.from_pretrained(
        CHECKPOINTS[1], open_source(PhantomConfig(n_studies=10, seed=3)), dtype=torch.float32
    )


@pytest.fixture(scope="module")
def sae(phantom_model):
    return random_sae(phantom_model.cfg.d_model, "blocks.1.hook_resid_post")


@pytest.fixture(scope="module")
def out(tmp_path_factory, phantom_model, sae):
    folder = tmp_path_factory.mktemp("attribution") / "out"
    attribute(sae, phantom_model, folder, CONFIG)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_table_of_features_has_shares_that_sum_to_one(out):
    result = read_result(out)
    rows = result.table("features").to_pylist()
    assert [row["feature"] for row in rows] == list(range(12))
    shared = [row for row in rows if row["driver"] is not None]
    assert shared
    for row in shared:
        parts = [row[name] for name in ("image", "prior", "text", "report")]
        assert sum(parts) == pytest.approx(1, abs=1e-4)
        assert row["driver"] == ("image", "prior", "text", "report")[int(np.argmax(parts))]
        for name in ("image", "prior", "text", "report"):
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
    assert set(result.columns) <= set(rows[0])


def test_maps_are_a_table_and_pictures(out):
    rows = pyarrow.parquet.read_table(out / "maps.parquet").to_pylist()
    assert {row["method"] for row in rows} == {"relp", "occlusion", "random", "center"}
    assert {row["view"] for row in rows} == {"frontal", "prior_frontal"}
    assert {row["feature"] for row in rows} == {4}
    assert all(len(row["values"]) == row["side"] ** 2 for row in rows)
    winners = [row for row in rows if row["is_winner"]]
    pictures = sorted(path.name for path in (out / "maps").iterdir())
    assert pictures == sorted({f"{row['feature']}-{row['study']:06d}-{row['view']}.png" for row in winners})
    hottest = max(winners, key=lambda row: max(row["values"]))
    picture = Image.open(out / "maps" / f"{hottest['feature']}-{hottest['study']:06d}-{hottest['view']}.png")
    alpha = np.asarray(picture.getchannel("A"))
    side = hottest["side"]
    row, column = divmod(int(np.argmax(hottest["values"])), side)
    size = alpha.shape[0] // side
    middle = alpha[row * size + size // 2, column * size + size // 2]
    assert middle >= 0.9 * alpha.max() > 0


def test_nothing_of_a_study_but_its_name_is_in_the_result(out, phantom_model):
    texts = [text for study in phantom_model.studies for text in study.texts.values()]
    for name, content in files_of(out).items():
        if not name.startswith("units/"):
            assert not any(text.encode() in content for text in texts if len(text) > 20), name


def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(out, tmp_path, phantom_model, sae):
    """A killed run leaves some units and no tables."""
    stopped = tmp_path / "stopped"
    shutil.copytree(out / "units", stopped / "units")
    units = sorted((stopped / "units").glob("[a-z]*-*.json"))
    missing = [next(unit for unit in units if unit.name.startswith(what)) for what in ("maps", "next", "shares")]
    for unit in missing:
        unit.unlink()
    attribute(sae, phantom_model, stopped, CONFIG)
    assert files_of(stopped) == files_of(out)


def test_ctrl_c_ends_after_the_study_that_is_being_computed(tmp_path):
    units = Units(tmp_path, {})
    computed: list[int] = []

    def compute(index):
        computed.append(index)
        if index == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return index

    nothing: Any = None
    run = Work(nothing, [], CONFIG, units)
    with pytest.raises(Interrupted, match="3 studies of 'part' left"):
        run.each("part", range(5), compute)
    assert computed == [0, 1]
    assert run.each("part", range(5), compute) == [0, 1, 2, 3, 4]
    assert computed == [0, 1, 2, 3, 4]


def test_other_settings_are_refused_in_the_same_folder(out, tmp_path, phantom_model, sae):
    other = tmp_path / "other"
    shutil.copytree(out, other)
    with pytest.raises(ResultError, match="other settings"):
        attribute(sae, phantom_model, other, replace(CONFIG, n_studies=9))


def test_what_cannot_be_done_is_said_before_anything_starts(phantom_model, sae, tmp_path):
    for changed, sentence in [
        ({"features": (12,)}, "There is no feature 12; the SAE has 12"),
        ({"n_studies": 3}, "of 4 patients or more"),
        ({"boxes": "missing.csv"}, "There is no table of boxes 'missing.csv'"),
    ]:
        with pytest.raises(AttributionError, match=sentence):
            attribute(sae, phantom_model, tmp_path / "none", replace(CONFIG, **changed))
    assert not (tmp_path / "none").exists()


def test_settings_that_mean_nothing_are_refused():
    for changed, sentence in [
        ({"swaps": ("same", "same")}, "each kind once"),
        ({"methods": ()}, "methods is empty"),
        ({"chosen_share": 1.0}, "between 0 and 1"),
    ]:
        with pytest.raises(AttributionError, match=sentence):
            replace(CONFIG, **changed)


def test_the_verb_tells_what_it_would_do_and_then_prints_the_figures(sae, tmp_path, capsys, out):
    folder = tmp_path / "sae"
    sae.save_model(folder)
    (folder / "config.yaml").write_text(
        "hook_name: blocks.1.hook_resid_post\ncontext_size: 64\nsae: {architecture: maira_matryoshka, d_sae: 12}\n"
        "source: {kind: phantom, n_studies: 10, seed: 3}\n"
    )
    settings = tmp_path / "attribution.yaml"
    settings.write_text(json.dumps(CONFIG.to_dict() | {"n_map_studies": 0, "n_next_studies": 1}))
    arguments = ["attribute", str(folder), "--config", str(settings), "--out", str(tmp_path / "result")]
    assert main([*arguments, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("10 studies, ")
    assert "Effects on the next token in 1 studies." in said
    assert not (tmp_path / "result").exists()
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "sources swapped: different" in said
    assert "features, last_prompt" in said
    again = read_result(tmp_path / "result").table("features")
    mine = read_result(out).table("features")
    assert again.select(["driver", "image"]).equals(mine.select(["driver", "image"]))


def test_a_folder_without_an_sae_is_refused(tmp_path, capsys):
    assert main(["attribute", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "cfg.json'; give the folder that training wrote" in capsys.readouterr().err
