"""Configurations: mirrors of YAML files, with clear errors."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from sae_lens_maira.activations.config import load_cache_config
from sae_lens_maira.errors import ConfigError
from sae_lens_maira.hooked import HookedMaira2
from sae_lens_maira.training.config import TrainConfig, load_config
from sae_lens_maira.training.runner_config import sae_config, to_runner_config
from tests.conftest import CHECKPOINT_PATH

CONFIG_PATHS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
IS_CACHE = {path: "cache" in yaml.safe_load(path.read_text()) for path in CONFIG_PATHS}
TRAIN_PATHS = [path for path in CONFIG_PATHS if not IS_CACHE[path]]
CACHE_PATHS = [path for path in CONFIG_PATHS if IS_CACHE[path]]
SMALLEST = {"hook_name": "blocks.1.hook_resid_post", "context_size": 64, "sae": {"architecture": "topk", "d_sae": 8}}


@pytest.fixture(scope="module")
def hooked():
    return HookedMaira2.from_pretrained(CHECKPOINT_PATH)


@pytest.mark.parametrize("path", TRAIN_PATHS, ids=lambda path: path.stem)
def test_shipped_configs_are_whole_and_known_to_sae_lens(path):
    config = load_config(path)
    written = yaml.safe_load(path.read_text())
    assert set(written) <= {field.name for field in dataclasses.fields(TrainConfig)}
    d_model = 160 if "phantom" in path.stem else 4096
    settings = sae_config(config.sae, d_model)
    assert settings.d_sae == config.sae["expansion_factor"] * d_model


@pytest.mark.parametrize("path", CACHE_PATHS, ids=lambda path: path.stem)
def test_shipped_cache_configs_are_those_of_a_training(path):
    config = load_cache_config(path, [])
    trainings = [load_config(training) for training in TRAIN_PATHS]
    assert any(
        (config.model, config.source, config.policy) == (training.model, training.source, training.policy)
        and training.hook_name in config.cache.hook_names
        for training in trainings
    )


@pytest.mark.parametrize("path", CONFIG_PATHS, ids=lambda path: path.stem)
def test_every_group_and_unusual_field_of_a_shipped_config_is_commented(path):
    lines = [line for line in path.read_text().splitlines() if line and not line.lstrip().startswith("#")]
    top_level = [line for line in lines if not line.startswith(" ") and not line.endswith(":")]
    assert all("#" in line for line in top_level)


def test_a_config_survives_a_round_trip_through_yaml(config):
    assert TrainConfig.from_dict(yaml.safe_load(yaml.safe_dump(config.to_dict()))) == config


def test_overrides_reach_into_groups(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(SMALLEST))
    config = load_config(
        path, ["--sae.k", "12", "--runner.lr=1e-3", "--policy.image_tokens", "none", "--model", "here"]
    )
    assert config.sae["k"] == 12
    assert config.runner["lr"] == 0.001
    assert config.policy.image_tokens == "none"
    assert config.model == "here"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hok_name": 1}, "Unknown setting 'hok_name'; did you mean hook_name"),
        (
            {"source": {"kind": "phantom", "n_study": 3}},
            "Unknown setting 'source.n_study'; did you mean source.n_studies",
        ),
        (
            {"source": {"kind": "nowhere"}},
            "source.kind 'nowhere' is unknown; choose phantom, manifest, openi or mimic_cxr",
        ),
        ({"source": {"kind": "manifest"}}, "source.path is missing"),
        ({"policy": {"image_token": "all"}}, "Unknown setting 'policy.image_token'; did you mean policy.image_tokens"),
        ({"policy": {"image_tokens": "some"}}, "Unknown image_tokens 'some'; choose one of last, none, all"),
        ({"runner": 3}, "'runner' must be a group of settings"),
        ({"sae": {"d_sae": 8}}, "sae.architecture is missing"),
        ({"sae": {"architecture": "topk"}}, "exactly one of sae.d_sae and sae.expansion_factor"),
        ({"max_norm_multiple": 0.5}, "max_norm_multiple 0.5 would leave out half"),
    ],
)
def test_wrong_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig.from_dict({**SMALLEST, **change})


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (None, [], "There is no configuration"),
        ("a: [", [], "is not valid YAML"),
        ("3", [], "holds no settings"),
        ("context_size: 3", [], "lacks hook_name, sae"),
        ("a: 1", ["k"], "'k' is no setting; write --name value"),
        ("a: 1", ["--k"], "--k lacks a value"),
        ("a: 1", ["--a.b", "2"], "'a' is no group of settings"),
    ],
)
def test_broken_files_and_overrides_are_named(tmp_path, text, overrides, message):
    path = tmp_path / "run.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(path, overrides)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hook_name": "blocks.1.hook_resid_pos"}, "did you mean hook_name blocks.1.hook_resid_post"),
        ({"runner": {"learning_rate": 1}}, r"Unknown setting 'runner.learning_rate'"),
        ({"runner": {"hook_name": "x"}}, r"Unknown setting 'runner.hook_name'"),
        ({"logger": {"wandb": 1}}, r"Unknown setting 'logger.wandb'"),
        ({"sae": {"architecture": "topkk", "d_sae": 8}}, "sae.architecture 'topkk' is unknown; SAE-Lens has"),
        ({"sae": {"architecture": "topk", "d_sae": 8, "kk": 2}}, "Unknown setting 'sae.kk'"),
        ({"sae": {"architecture": "topk", "d_sae": 8, "d_in": 7}}, "sae.d_in is 7, but the model's width is 64"),
    ],
)
def test_settings_that_do_not_fit_the_model_or_sae_lens_are_named(hooked, tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        to_runner_config(TrainConfig.from_dict({**SMALLEST, **change}), hooked, tmp_path)


def test_wandb_is_off_and_padding_is_left_out(hooked, config, tmp_path):
    runner = to_runner_config(config, hooked, tmp_path)
    assert runner.logger.log_to_wandb is False
    assert runner.exclude_special_tokens == [hooked.processor.tokenizer.pad_token_id]
