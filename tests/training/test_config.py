"""Configurations: read from YAML files, with clear errors."""

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml

from sae_lens_maira.activations.config import load_cache_config
from sae_lens_maira.data.source import PhantomConfig
from sae_lens_maira.errors import ConfigError
from sae_lens_maira.hooked import HookedMaira2
from sae_lens_maira.settings import ModelConfig
from sae_lens_maira.training.config import TrainConfig, load_config
from sae_lens_maira.training.mirrored import with_sae_lens_types
from sae_lens_maira.training.runner_config import sae_config, to_runner_config
from tests.conftest import CHECKPOINT_PATH

CONFIG_PATHS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
SETTINGS = {path: yaml.safe_load(path.read_text()) for path in CONFIG_PATHS}
TRAIN_PATHS = [path for path in CONFIG_PATHS if "sae" in SETTINGS[path]]
CACHE_PATHS = [path for path in CONFIG_PATHS if "hook_names" in SETTINGS[path]]
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
    config = load_cache_config(path)
    trainings = [load_config(training) for training in TRAIN_PATHS]
    assert any(
        (config.model, config.source, config.policy) == (training.model, training.source, training.policy)
        and training.hook_name in config.hook_names
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
    given = {"sae": {"k": 12}, "runner": {"lr": 0.001}, "policy": {"image_tokens": "none"}, "model": {"name": "here"}}
    config = load_config(path, given)
    assert config.sae == {"architecture": "topk", "d_sae": 8, "k": 12}
    assert config.runner["lr"] == 0.001
    assert config.policy.image_tokens == "none"
    assert config.model.name == "here"


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
        ({"policy": {"image_tokens": "some"}}, "policy.image_tokens 'some' is unknown; choose last, none or all"),
        ({"model": "phantom"}, "'model' must be a group of settings, not 'phantom'"),
        ({"model": {"dtype": "float7"}}, "model.dtype 'float7' is unknown; choose float32, bfloat16, float16 or auto"),
        ({"model": {"revision": 12}}, "model.revision is '12'; it must be text or null"),
        ({"context_size": "long"}, "context_size is 'long'; it must be a whole number"),
        ({"context_size": True}, "context_size is 'true'; it must be a whole number"),
        ({"context_size": 0}, "context_size is 0; it must be at least 1"),
        ({"activations": {"kinds": ["finding"]}}, "did you mean activations.kinds findings"),
        ({"activations": {"run_length": 0}}, "activations.run_length is 0; it must be at least 1"),
        ({"source": {"kind": "openi", "seed": 1}}, "source.seed means nothing to kind openi; its settings are path"),
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
    ("text", "given", "message"),
    [
        (None, {}, "There is no configuration"),
        ("a: [", {}, "is not valid YAML"),
        ("3", {}, "holds no settings"),
        ("context_size: 3", {}, "lacks hook_name, sae"),
        ("context_size: 3\nhook_name: x", {}, "sae is missing: ``architecture``"),
        ("model: phantom", {"model": {"dtype": "float16"}}, "'model' is no group of settings but 'phantom'"),
    ],
)
def test_broken_files_and_overrides_are_named(tmp_path, text, given, message):
    path = tmp_path / "run.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(path, given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hook_name": "blocks.1.hook_resid_pos"}, "did you mean hook_name blocks.1.hook_resid_post"),
        ({"runner": {"learning_rate": 1}}, r"Unknown setting 'runner.learning_rate'"),
        ({"runner": {"hook_name": "x"}}, r"Unknown setting 'runner.hook_name'"),
        ({"logger": {"wandb": 1}}, r"Unknown setting 'logger.wandb'"),
        ({"runner": {"training_tokens": 0}}, "runner.training_tokens is 0; it must be at least 1"),
        ({"runner": {"train_batch_size_tokens": -8}}, "runner.train_batch_size_tokens is -8; it must be at least 1"),
        ({"runner": {"lr": "fast"}}, "runner.lr is 'fast'; it must be a number"),
        ({"runner": {"lr_scheduler_name": 3}}, "runner.lr_scheduler_name is '3'; it must be text"),
        ({"sae": {"architecture": "topk", "d_sae": 8, "k": "abc"}}, "sae.k is 'abc'; it must be a whole number"),
        ({"sae": {"architecture": "topk", "d_sae": 8.5}}, "sae.d_sae is '8.5'; it must be a whole number"),
        ({"sae": {"architecture": "topkk", "d_sae": 8}}, "sae.architecture 'topkk' is unknown; SAE-Lens has"),
        ({"sae": {"architecture": "topk", "d_sae": 8, "kk": 2}}, "Unknown setting 'sae.kk'"),
        ({"sae": {"architecture": "topk", "d_sae": 8, "d_in": 7}}, "sae.d_in is 7, but the model's width is 64"),
    ],
)
def test_settings_that_do_not_fit_the_model_or_sae_lens_are_named(hooked, tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        to_runner_config(TrainConfig.from_dict({**SMALLEST, **change}), hooked, tmp_path)


def test_numbers_are_of_the_type_that_sae_lens_wants(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("hook_name: x\ncontext_size: 1e2\nsae: {architecture: topk, d_sae: 8, k: 4.0}\nrunner: {lr: 1e-3}")
    config = with_sae_lens_types(load_config(path, {"runner": {"training_tokens": 1e4}}))
    assert config.context_size == 100
    assert (config.sae["k"], type(config.sae["k"])) == (4, int)
    assert (config.runner["lr"], config.runner["training_tokens"]) == (0.001, 10_000)
    assert type(config.runner["training_tokens"]) is int


@pytest.mark.parametrize(
    ("expansion_factor", "widths"),
    [
        (2, [4096, 6144, 7168, 7680, 8192]),
        (4, [8192, 12288, 14336, 15360, 16384]),
        (8, [16384, 24576, 28672, 30720, 32768]),
    ],
)
def test_one_file_holds_the_three_dictionaries_of_the_paper(expansion_factor, widths):
    path = next(path for path in TRAIN_PATHS if path.stem == "maira2_layer15")
    config = load_config(path, {"sae": {"expansion_factor": expansion_factor}})
    assert sae_config(config.sae, 4096).widths() == widths


def test_a_group_that_is_given_another_kind_starts_afresh(tmp_path):
    path = tmp_path / "run.yaml"
    manifest = {"kind": "manifest", "path": "studies.csv", "n_held_out": 5}
    path.write_text(yaml.safe_dump({**SMALLEST, "source": manifest}))
    assert load_config(path, {"source": {"n_studies": 3}}).source.to_dict() == {**manifest, "n_studies": 3}
    assert load_config(path, {"source": {"kind": "phantom", "n_studies": 3}}).source == PhantomConfig(n_studies=3)


def test_values_that_are_given_in_python_are_checked_too():
    with pytest.raises(ConfigError, match="model.dtype 'float7' is unknown"):
        ModelConfig(dtype="float7")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="'source' must be a group of settings"):
        TrainConfig(**SMALLEST, source="phantom")  # pyright: ignore[reportArgumentType]


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="model.device 'gpu' is unknown; choose auto, cpu, cuda"):
        ModelConfig(device="gpu").find_device()
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="model.device is cuda:1, but PyTorch finds no GPU here"):
            ModelConfig(device="cuda:1").find_device()


def test_wandb_is_off_and_padding_is_left_out(hooked, config, tmp_path):
    runner = to_runner_config(config, hooked, tmp_path)
    assert runner.logger.log_to_wandb is False
    assert runner.exclude_special_tokens == [hooked.processor.tokenizer.pad_token_id]
