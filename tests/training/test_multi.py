"""Several SAEs in one pass over the model: SAE-Lens's own runner on HookedMaira2, and the resumable one."""

import json
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from sae_lens import SAE, BatchTopKTrainingSAEConfig, LoggingConfig
from sae_lens.multi_sae_training_runner import MultiSAETrainingRunner, MultiSAETrainingRunnerConfig
from safetensors.torch import load_file

from sae_lens_maira import phantom
from sae_lens_maira.activations import ActivationCache
from sae_lens_maira.activations.write import write_cache
from sae_lens_maira.errors import ConfigError, Interrupted
from sae_lens_maira.hooked import HookedMaira2
from sae_lens_maira.hooked.identity import METADATA_KEY
from sae_lens_maira.hooked.loading import load_model
from sae_lens_maira.sources import open_source
from sae_lens_maira.training import runners
from sae_lens_maira.training.config import ActivationsConfig, TrainConfig, load_config
from sae_lens_maira.training.data import training_data
from sae_lens_maira.training.multi import train_several
from sae_lens_maira.training.run import train
from sae_lens_maira.training.runner_config import to_multi_runner_config
from sae_lens_maira.training.runners import ResumableMultiRunner
from tests.activations.conftest import make_settings
from tests.conftest import CHECKPOINT_PATH
from tests.training.conftest import copy_mark

HOOKS = {"early": "blocks.0.hook_resid_post", "early_wide": "blocks.0.hook_resid_post", "late": "blocks.2.hook_mlp_out"}
WIDTHS = {"early": 64, "early_wide": 128, "late": 64}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    model = HookedMaira2.from_pretrained(CHECKPOINT_PATH, list(phantom.studies(16, seed=1)))
    dataset = model.rows(64).dataset.select_columns(["tokens"])
    n_forwards = []
    model.maira2.model.language_model.layers[1].register_forward_hook(lambda *_: n_forwards.append(1))
    batches = []
    full_inputs = model.full_inputs
    model.full_inputs = lambda *args, **kwargs: batches.append(1) or full_inputs(*args, **kwargs)
    path = tmp_path_factory.mktemp("multi")
    config = MultiSAETrainingRunnerConfig(
        saes={name: BatchTopKTrainingSAEConfig(d_in=64, d_sae=WIDTHS[name], k=4) for name in HOOKS},
        hook_names=HOOKS,
        model_name=str(CHECKPOINT_PATH),
        context_size=64,
        training_tokens=1024,
        train_batch_size_tokens=128,
        store_batch_size_prompts=4,
        n_batches_in_buffer=6,
        prepend_bos=False,
        exclude_special_tokens=[0],
        output_path=str(path),
        checkpoint_path=None,
        logger=LoggingConfig(log_to_wandb=False),
        device="cpu",
    )
    runner = MultiSAETrainingRunner(config, override_dataset=dataset, override_model=model)
    return runner.run(), path, len(n_forwards), len(batches)


def test_every_sae_is_trained_and_saved_in_sae_lens_format(trained):
    saes, path, _, _ = trained
    assert saes.keys() == HOOKS.keys()
    saved = {file.parent.name: SAE.load_from_disk(file.parent) for file in path.rglob("cfg.json")}
    for name, sae in saved.items():
        assert sae.cfg.d_sae == WIDTHS[name]
        assert sae.cfg.metadata.hook_name == HOOKS[name]
        assert torch.isfinite(sae.W_dec).all()
    assert saved.keys() == HOOKS.keys()


def test_each_batch_of_rows_runs_the_model_once_for_all_hook_points(trained):
    _, _, n_forwards, n_batches = trained
    assert n_forwards == n_batches


# Resuming, from the live model and from a cache.

N_BATCHES = 12


@pytest.fixture(scope="module")
def several(tmp_path_factory) -> TrainConfig:
    """Three SAEs at two hook points, one of them with another architecture."""
    return TrainConfig.from_dict(
        {
            "model": {"name": str(CHECKPOINT_PATH), "device": "cpu"},
            "hook_name": "blocks.0.hook_resid_post",
            "context_size": 64,
            "source": {"kind": "phantom", "n_studies": 24, "n_held_out": 8},
            "n_eval_batches": 2,
            "max_norm_multiple": 1.1,
            "sae": {"architecture": "matryoshka_batchtopk", "d_sae": 64, "k": 4, "matryoshka_widths": [16, 64]},
            "saes": {
                "narrow": {},
                "scaled": {"normalize_activations": "expected_average_only_in", "k": 6},
                "late": {"architecture": "topk", "expansion_factor": 2, "k": 5, "hook_name": "blocks.2.hook_mlp_out"},
            },
            "runner": {
                "training_tokens": 128 * N_BATCHES,
                "train_batch_size_tokens": 128,
                "store_batch_size_prompts": 4,
                "n_batches_in_buffer": 6,
                "n_batches_for_norm_estimate": 3,
                "lr": 0.001,
                "n_checkpoints": 2,
            },
        }
    )


@pytest.fixture(scope="module", params=["live", "cached"])
def config(request, several, tmp_path_factory) -> TrainConfig:
    if request.param == "live":
        return several
    path = tmp_path_factory.mktemp("caches") / "cache"
    model = load_model(several.model, open_source(several.source), several.policy)
    hooks = ("blocks.2.hook_mlp_out", "blocks.0.hook_resid_post")
    write_cache(model, path, make_settings(hook_names=hooks), show_progress=False)
    return replace(several, activations=ActivationsConfig(cache=str(path)))


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "finished"
    return train_several(config, path), path


def assert_same_weights(path, other):
    for name in ("narrow", "scaled", "late"):
        ours, theirs = (load_file(folder / name / "sae_weights.safetensors") for folder in (path, other))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_each_sae_of_a_run_has_its_settings_scores_and_configuration(config, finished):
    results, path = finished
    assert results.keys() == config.saes.keys()
    for name, (d_sae, hook_name) in {
        "narrow": (64, "blocks.0.hook_resid_post"),
        "scaled": (64, "blocks.0.hook_resid_post"),
        "late": (128, "blocks.2.hook_mlp_out"),
    }.items():
        sae = SAE.load_from_disk(path / name)
        assert (sae.cfg.d_sae, sae.cfg.metadata.hook_name) == (d_sae, hook_name)
        assert sae.cfg.metadata[METADATA_KEY]["weights_fingerprint"]
        alone = load_config(path / name / "config.yaml")
        assert (alone.hook_name, alone.saes) == (hook_name, {})
        assert json.loads((path / name / "scores.json").read_text()) == results[name].scores.to_dict()
        assert results[name].scores.n_tokens == results["narrow"].scores.n_tokens


def test_a_resumed_run_of_several_saes_equals_one_that_was_not_stopped(config, finished, tmp_path):
    _, path = finished
    first = min((path / "checkpoints").iterdir(), key=lambda folder: int(folder.name))
    shutil.copytree(first, tmp_path / "checkpoints" / first.name)
    copy_mark(path, tmp_path)
    train_several(config, tmp_path, resume=True)
    assert_same_weights(tmp_path, path)


def test_ctrl_c_stops_between_two_steps_and_the_run_resumes_to_the_same_weights(
    config, finished, tmp_path, monkeypatch
):
    n_steps = []
    update = runners.show_progress

    def interrupt(*args, **kwargs):
        n_steps.append(1)
        if len(n_steps) == 7:
            signal.raise_signal(signal.SIGINT)
        update(*args, **kwargs)

    monkeypatch.setattr(runners, "show_progress", interrupt)
    with pytest.raises(Interrupted, match="--resume"):
        train_several(config, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / str(7 * 128)).is_dir()
    assert not (tmp_path / "run" / "narrow").exists()
    with pytest.raises(ConfigError, match="holds an unfinished run"):
        train_several(config, tmp_path / "run")
    results = train_several(config, tmp_path / "run", resume=True)
    assert len(n_steps) == N_BATCHES
    assert_same_weights(tmp_path / "run", finished[1])
    again = train_several(config, tmp_path / "run", resume=True)
    assert {name: result.scores for name, result in again.items()} == {
        name: result.scores for name, result in results.items()
    }


def test_several_saes_train_on_the_same_tokens_live_and_cached(several, tmp_path):
    """Tokens whose norm is too large at any of the hook points are left out at all of them."""
    model = load_model(several.model, open_source(several.source), several.policy)
    runner_config = to_multi_runner_config(several, model, tmp_path)
    hooks = ["blocks.0.hook_resid_post", "blocks.2.hook_mlp_out"]
    live = training_data(several, model, hooks, runner_config)
    write_cache(model, tmp_path / "cache", make_settings(hook_names=hooks), show_progress=False)
    with_cache = replace(several, activations=ActivationsConfig(cache=str(tmp_path / "cache")))
    cached = training_data(with_cache, model, hooks, runner_config)
    assert live.selection.norm_limits == pytest.approx(cached.selection.norm_limits, rel=1e-5)
    store = ResumableMultiRunner(runner_config, model, live).store
    blocks = [store.selected_block() for _ in range(16 // 4)]
    assert cached.provider is not None
    assert sum(block.n_tokens for block in blocks) == cached.provider.n_tokens
    alone = replace(live.selection, norm_limits={hooks[0]: live.selection.norm_limits[hooks[0]]})
    kept = [block.keep(alone.of(block)) for block in ActivationCache.open(tmp_path / "cache")]
    assert sum(block.n_tokens for block in kept) > cached.provider.n_tokens


def test_what_does_not_fit_is_named(several, tmp_path):
    with pytest.raises(ConfigError, match="names several SAEs in saes; call train_several"):
        train(several, tmp_path)
    with pytest.raises(ConfigError, match="saes is missing"):
        train_several(replace(several, saes={}), tmp_path)
    with pytest.raises(ConfigError, match="Unknown setting 'sae.kk'"):
        train_several(replace(several, saes={"a": {"kk": 3}}), tmp_path / "a")
    wrong = replace(several, saes={"a": {"hook_name": "blocks.0.hook_resid_pots"}})
    with pytest.raises(ConfigError, match="did you mean hook_name blocks.0.hook_resid_post"):
        train_several(wrong, tmp_path / "b")
