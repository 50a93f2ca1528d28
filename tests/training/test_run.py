"""Training through SAE-Lens's runner: results, resuming, interruption."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from sae_lens_maira.errors import ConfigError, SaeMismatch
from sae_lens_maira.hooked import HookedMaira2
from sae_lens_maira.hooked.identity import METADATA_KEY, check_sae_fits
from sae_lens_maira.hooked.loading import load_model
from sae_lens_maira.sources import open_source
from sae_lens_maira.training.run import train
from tests.conftest import CHECKPOINT_PATH
from tests.training.conftest import copy_mark

WEIGHTS = "sae_weights.safetensors"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, config):
    """An uninterrupted run, shared by the tests."""
    return train(config, tmp_path_factory.mktemp("runs") / "finished")


def assert_same_weights(path: Path, other: Path) -> None:
    ours, theirs = load_file(path / WEIGHTS), load_file(other / WEIGHTS)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_result_loads_in_plain_sae_lens_without_this_package(finished):
    code = (
        "import sys; from sae_lens import SAE; sae = SAE.load_from_disk(sys.argv[1]);"
        "print(sae.cfg.architecture(), sae.cfg.metadata.hook_name, 'sae_lens_maira' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code, finished.path], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["jumprelu", "blocks.1.hook_resid_post", "False"]


def test_the_metadata_says_model_layer_and_policy(finished, config):
    metadata = json.loads((finished.path / "cfg.json").read_text())["metadata"]
    assert metadata["model_name"] == str(CHECKPOINT_PATH)
    assert metadata["hook_name"] == config.hook_name
    assert metadata["context_size"] == config.context_size
    assert metadata[METADATA_KEY]["token_policy"] == config.policy.to_dict()
    assert len(metadata[METADATA_KEY]["weights_fingerprint"]) == 16


def test_scores_equal_those_computed_by_hand(finished, config):
    """Explained variance, L0 and dead features on the held-out rows, from the activations themselves."""
    model = load_model(config.model, open_source(config.source), config.policy)
    dataset = model.rows(config.context_size).dataset
    tokens = torch.tensor(dataset[16:24]["tokens"])
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=[config.hook_name], return_type=None)
        x = cache[config.hook_name][tokens != model.tokenizer.pad_token_id]
        features = finished.sae.encode(x)
        residual = (x - finished.sae.decode(features)).square().sum()
    total = (x - x.mean(dim=0)).square().sum()
    assert finished.scores.explained_variance == pytest.approx((1 - residual / total).item(), abs=1e-3)
    assert finished.scores.l0 == pytest.approx((features > 0).float().sum(dim=1).mean().item(), rel=1e-4)
    assert finished.scores.dead_share == pytest.approx((features > 0).any(dim=0).logical_not().float().mean().item())
    assert finished.scores.n_tokens == len(x)


def test_resuming_gives_the_weights_of_an_uninterrupted_run(finished, config, tmp_path):
    first = min((finished.path / "checkpoints").iterdir(), key=lambda path: int(path.name))
    unfinished = tmp_path / "unfinished"
    shutil.copytree(first, unfinished / "checkpoints" / first.name)
    copy_mark(finished.path, unfinished)
    train(config, unfinished, resume=True)
    assert_same_weights(unfinished, finished.path)


def test_a_checkpoint_that_was_cut_short_is_passed_over(finished, config, tmp_path):
    first, last = sorted((finished.path / "checkpoints").iterdir(), key=lambda path: int(path.name))
    unfinished = tmp_path / "unfinished"
    shutil.copytree(first, unfinished / "checkpoints" / first.name)
    shutil.copytree(last, unfinished / "checkpoints" / last.name)
    (unfinished / "checkpoints" / last.name / "runner_cfg.json").write_text('{"cut')
    copy_mark(finished.path, unfinished)
    train(config, unfinished, resume=True)
    assert_same_weights(unfinished, finished.path)


def test_ctrl_c_saves_a_checkpoint_that_resumes_to_the_same_weights(config, tmp_path):
    """A real process that gets a real signal is stopped in the middle and resumed; it equals an uninterrupted run."""
    runner = {**config.runner, "training_tokens": 128 * 400, "n_checkpoints": 0}
    config = replace(config, runner=runner)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(config, whole)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config.to_dict()))
    command = [sys.executable, "-m", "sae_lens_maira.cli.main", "train", "--config", str(tmp_path / "run.yaml")]
    log_path = tmp_path / "log"
    with log_path.open("w") as log:
        process = subprocess.Popen(
            [*command, "--out", str(stopped)], stdout=log, stderr=log, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )
        deadline = time.monotonic() + 120
        while not re.search(r" [1-9]\d*/51200 ", log_path.read_text()) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 130, log_path.read_text()[-2000:]
    (checkpoint,) = (stopped / "checkpoints").iterdir()
    assert 0 < int(checkpoint.name) < 128 * 400
    assert not (stopped / WEIGHTS).exists()
    assert "train goes on with --resume" in log_path.read_text()
    train(config, stopped, resume=True)
    assert_same_weights(stopped, whole)


def test_a_folder_with_another_or_a_finished_run_is_refused(finished, config, tmp_path):
    with pytest.raises(ConfigError, match="holds a finished run already"):
        train(config, finished.path)
    with pytest.raises(ConfigError, match="holds a run with another context_size, hook_name"):
        train(replace(config, context_size=32, hook_name="blocks.2.hook_resid_post"), finished.path)
    first = next((finished.path / "checkpoints").iterdir())
    shutil.copytree(first, tmp_path / "checkpoints" / first.name)
    copy_mark(finished.path, tmp_path)
    with pytest.raises(ConfigError, match="holds an unfinished run; pass --resume"):
        train(config, tmp_path)


def test_resuming_a_finished_run_changes_nothing(finished, config):
    before = (finished.path / WEIGHTS).stat().st_mtime_ns
    again = train(config, finished.path, resume=True)
    assert again.scores == finished.scores
    assert (finished.path / WEIGHTS).stat().st_mtime_ns == before


def test_an_sae_is_refused_by_another_model_layer_width_or_policy(finished, config):
    model = load_model(config.model, [], config.policy)
    check_sae_fits(finished.sae, model)
    with torch.no_grad():
        model.maira2.lm_head.weight[0, 0] += 1.0
    with pytest.raises(SaeMismatch, match="it was trained on .* but this is"):
        check_sae_fits(finished.sae, model)
    policy = replace(config.policy, image_tokens="all")
    other = HookedMaira2.from_pretrained(CHECKPOINT_PATH, policy=policy)
    with pytest.raises(SaeMismatch, match="its token policy has image_tokens = last, the model's all"):
        check_sae_fits(finished.sae, other)


def test_the_fingerprint_is_the_same_in_every_dtype(config):
    from sae_lens_maira.hooked.identity import fingerprint_weights

    prints = {
        dtype: fingerprint_weights(HookedMaira2.from_pretrained(CHECKPOINT_PATH, dtype=dtype).maira2)
        for dtype in (torch.float32, torch.bfloat16, torch.float64)
    }
    assert len(set(prints.values())) == 1
