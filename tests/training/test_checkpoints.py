"""Runs are never mixed: overwriting, killing and resuming; damaged checkpoints; two trainings in one folder."""

import logging
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import yaml
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file

from sae_lens_maira.errors import ConfigError, Interrupted
from sae_lens_maira.files import MARKER, exclusive, mark
from sae_lens_maira.training.checkpoints import hash_config, newest_whole
from sae_lens_maira.training.mirrored import with_sae_lens_types
from sae_lens_maira.training.result import read_result
from sae_lens_maira.training.run import train
from tests.training.conftest import copy_mark

WEIGHTS = "sae_weights.safetensors"
KILLED_AT_A_STEP = """
import os, signal, sys
from sae_lens.training.sae_trainer import SAETrainer
from sae_lens_maira.cli.main import main

SAETrainer._checkpoint_if_needed = lambda self: self.n_training_steps == 2 and os.kill(os.getpid(), signal.SIGKILL)
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def other(config):
    """Settings of another run: another seed and learning rate."""
    return replace(config, runner={**config.runner, "seed": 7, "lr": 0.004})


@pytest.fixture(scope="module")
def finished(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("runs") / "finished"
    train(config, path)
    return path


@pytest.fixture(scope="module")
def fresh(tmp_path_factory, other):
    """Weights of a run with the other settings in an empty folder."""
    path = tmp_path_factory.mktemp("runs") / "fresh"
    train(other, path)
    return load_file(path / WEIGHTS)


def assert_weights(path, expected):
    ours = load_file(path / WEIGHTS)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)


def test_a_run_that_overwrites_and_is_killed_before_its_first_checkpoint_starts_anew(finished, other, fresh, tmp_path):
    path = shutil.copytree(finished, tmp_path / "run")
    (path / "notes.txt").write_text("mine")
    (path / "checkpoints" / "notes.txt").write_text("mine, too")
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other.to_dict()))
    arguments = ["train", "--config", tmp_path / "other.yaml", "--out", path, "--overwrite"]
    killed = subprocess.run([sys.executable, "-c", KILLED_AT_A_STEP, *arguments], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert {entry.name for entry in path.iterdir()} == {
        *("notes.txt", "checkpoints", "config.yaml", MARKER, ".training.lock")
    }
    train(other, path, resume=True)
    assert_weights(path, fresh)
    assert (path / "notes.txt").read_text() == "mine"
    assert (path / "checkpoints" / "notes.txt").read_text() == "mine, too"


def test_a_run_that_overwrites_and_is_interrupted_goes_on_from_its_own_checkpoint(
    finished, other, fresh, tmp_path, monkeypatch, caplog
):
    path = shutil.copytree(finished, tmp_path / "run")
    plain = SAETrainer._checkpoint_if_needed

    def interrupt(self):
        plain(self)
        if self.n_training_steps == 3:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(SAETrainer, "_checkpoint_if_needed", interrupt)
        with pytest.raises(Interrupted):
            train(other, path, overwrite=True)
    (own,) = (path / "checkpoints").iterdir()
    assert int(own.name) == 4 * 128
    with caplog.at_level(logging.INFO):
        train(other, path, resume=True)
    assert f"Resuming from '{own}'" in caplog.text
    assert_weights(path, fresh)


def test_a_checkpoint_of_another_run_is_refused(finished, other, tmp_path):
    path = shutil.copytree(finished, tmp_path / "run")
    (path / "config.yaml").write_text(yaml.safe_dump(other.to_dict()))
    (path / "scores.json").unlink()
    with pytest.raises(ConfigError, match=r"^The checkpoint '.*' belongs to a run with other settings; .*\.$"):
        train(other, path, resume=True)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (WEIGHTS, "cut"),
        ("trainer_state.pt", "cut"),
        ("activations_store_state.safetensors", "flip"),
        (WEIGHTS, "remove"),
        (MARKER, "remove"),
        (MARKER, "cut"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_with_a_word(finished, config, tmp_path, caplog, name, damage):
    checkpoints = shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints")
    older, newest = sorted(checkpoints.iterdir(), key=lambda path: int(path.name))
    assert newest_whole(checkpoints, hash_config(with_sae_lens_types(config))) == newest
    data = (newest / name).read_bytes()
    if damage == "remove":
        (newest / name).unlink()
    elif damage == "cut":
        (newest / name).write_bytes(data[: len(data) // 2])
    else:
        (newest / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert newest_whole(checkpoints, hash_config(with_sae_lens_types(config))) == older
    assert re.search(rf"The checkpoint '{re.escape(str(newest))}' is passed over: .*\.", caplog.text)


def test_a_run_with_a_damaged_checkpoint_resumes_to_the_same_weights(finished, config, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(finished / "checkpoints", path / "checkpoints")
    copy_mark(finished, path)
    newest = max((path / "checkpoints").iterdir(), key=lambda checkpoint: int(checkpoint.name))
    (newest / "trainer_state.pt").write_bytes(b"damaged")
    train(config, path, resume=True)
    assert_weights(path, load_file(finished / WEIGHTS))


@pytest.mark.parametrize("scores", ["", "{", "[1]", '{"l0": 1}', "[" * 100_000])
def test_damaged_scores_are_named_with_the_way_out(tmp_path, scores):
    (tmp_path / "scores.json").write_text(scores)
    with pytest.raises(ConfigError, match=r"^'.*scores\.json' cannot be read \(.*\); remove the scores"):
        read_result(tmp_path, "cpu")


def test_two_trainings_in_one_folder_are_refused(config, tmp_path):
    with exclusive(tmp_path / ".training.lock"), pytest.raises(ConfigError, match=r"^Another training runs in '.*'; "):
        train(config, tmp_path)
    assert not (tmp_path / "config.yaml").exists()


@pytest.mark.parametrize("name", [WEIGHTS, "config.yaml", "scores.json", "cfg.json", "checkpoints/500"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_no_run_wrote_is_neither_replaced_nor_removed(config, tmp_path, name, overwrite):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("a person's")
    with pytest.raises(ConfigError, match=r"was not written by a training run in '.*'; choose another folder\.$"):
        train(config, tmp_path, overwrite=overwrite)
    assert path.read_text() == "a person's"


def test_a_run_to_overwrite_names_no_folders_outside_its_own(finished, config, tmp_path, monkeypatch):
    path = shutil.copytree(finished, tmp_path / "run")
    victim = tmp_path / "victim" / "cfg.json"
    victim.parent.mkdir()
    victim.write_text("a person's")
    mark(path, "run", saes=["../victim", str(victim.parent)])
    train(config, path, overwrite=True)
    assert victim.read_text() == "a person's"
