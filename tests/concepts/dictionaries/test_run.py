"""The benchmark's settings and tables; and, slow, the whole benchmark on a handful of studies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sae_lens_maira.cli.main import main
from sae_lens_maira.concepts.dictionaries.run import compare_rows
from sae_lens_maira.concepts.dictionaries.settings import DictionariesConfig
from sae_lens_maira.errors import ConfigError
from sae_lens_maira.results import read_result
from sae_lens_maira.setting_values import read_yaml
from sae_lens_maira.settings import overlay

CONFIG = Path(__file__).parents[3] / "configs" / "dictionaries_phantom.yaml"
SMALL: dict[str, Any] = {
    "n_choosing": 60,
    "pairs_per_concept": 1,
    "training": {
        "source": {"n_studies": 110, "n_held_out": 50},
        "n_eval_batches": 1,
        "runner": {"training_tokens": 4096, "train_batch_size_tokens": 1024, "store_batch_size_prompts": 8},
        "saes": {
            "maira_matryoshka": {"d_sae": 64, "k": 8, "matryoshka_widths": [16, 64]},
            "matryoshka_batchtopk": {"d_sae": 64, "k": 8, "matryoshka_widths": [16, 64]},
            "batchtopk": {"d_sae": 64, "k": 8},
            "topk": {"d_sae": 64, "k": 8},
        },
    },
}


def config(**given: Any) -> DictionariesConfig:
    return DictionariesConfig.from_dict(overlay(read_yaml(CONFIG), given))


def test_the_example_compares_four_dictionaries_of_one_width_and_k() -> None:
    saes = config().training.saes
    assert set(saes) == {"maira_matryoshka", "matryoshka_batchtopk", "batchtopk", "topk"}
    assert {(sae["d_sae"], sae["k"]) for sae in saes.values()} == {(640, 24)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seeds": [0, 1]}, "three different ones"),
        ({"seeds": [0, 1, 1]}, "three different ones"),
        ({"n_choosing": 10_000}, "only 1800 studies are not held out"),
        ({"concept_tokens": ["frontal"]}, "frontal_image"),
        ({"training": {"source": {"kind": "openi"}}}, "must be the phantom"),
        ({"training": {"source": {"n_held_out": 10}}}, "at least 50"),
    ],
)
def test_settings_that_allow_no_comparison_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**given)


def test_a_seed_changes_initialization_and_order() -> None:
    first, second = (config().training_with(seed, "cache") for seed in (0, 1))
    assert (first.runner["seed"], second.runner["seed"]) == (0, 1)
    assert (first.shuffle_seed, second.shuffle_seed) == (0, 1)
    assert first.activations.cache == "cache"


def test_tables_compare_dictionaries_and_leave_out_concepts_and_controls() -> None:
    rows = [
        {"dictionary": name, "seed": seed, "metric": "probe_k1", "subject": subject, "value": value + seed / 100}
        for seed in range(3)
        for name, subject, value in (("a", "", 0.9), ("b", "", 0.5), ("a", "edema", 0.1), ("random", "", 0.99))
    ]
    found = compare_rows(rows, ["a", "b"])["probe_k1"]
    assert found.means == pytest.approx({"a": 0.91, "b": 0.51})
    assert found.claims == (("a", "b"),)


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dictionaries", "--config", str(CONFIG), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "with seeds 0, 1, 2 on 1800 studies and score them on 600 others and 96 pairs" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_benchmark_that_lost_parts_ends_in_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config(**SMALL).to_dict()))
    out = tmp_path / "out"
    arguments = ["dictionaries", "--config", str(tmp_path / "small.yaml"), "--out", str(out)]
    assert main(arguments) == 0
    printed, summary = capsys.readouterr().out, (out / "summary.json").read_bytes()
    for name in ("topk-seed1", "random_directions-seed0"):
        (out / "units" / f"{name}.json").unlink()
    assert main(arguments) == 0
    assert capsys.readouterr().out == printed
    assert (out / "summary.json").read_bytes() == summary
    rows = read_result(out).table("scores").to_pylist()
    assert {row["dictionary"] for row in rows} == {*config().training.saes, "random_directions", "coordinates"}
    groups = {row["subject"] for row in rows if row["metric"] == "absorption_rate"}
    assert groups == {"", "0-16", "16-64"}
    l0 = {row["seed"]: row["value"] for row in rows if (row["dictionary"], row["metric"]) == ("topk", "l0")}
    assert all(value <= 8 for value in l0.values())
