"""Killed, interrupted, out of disk space, split over machines: the resulting cache is the same."""

import errno
import json
import re
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from sae_lens_maira.activations import ActivationCache
from sae_lens_maira.activations.config import Shard
from sae_lens_maira.activations.manifest import merge_caches
from sae_lens_maira.activations.write import write_cache
from sae_lens_maira.cli.main import main
from sae_lens_maira.errors import CacheError, CacheMismatch
from sae_lens_maira.rows.policy import TokenPolicy
from tests.activations.conftest import N_STUDIES, break_images, make_model, make_settings, make_studies, tree
from tests.conftest import CHECKPOINT_PATH

ROOT = Path(__file__).parents[2]
LIMIT = 1800  # seconds, for processes that hang


def test_killed_at_20_random_moments_the_bytes_are_those_of_an_uninterrupted_run(tmp_path):
    command = [sys.executable, "-m", "tests.activations.killing", str(tmp_path), "7"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
    assert result.returncode == 0, result.stderr[-2000:]
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["n_kills"] == 20
    assert len(set(report["progress"])) > 3, "the kills came at too few different moments"
    whole = tree(tmp_path / "whole")
    assert len(whole) == 2 * 5 + 3
    for number in range(report["n_caches"]):
        assert tree(tmp_path / f"killed-{number}") == whole


INTERRUPTED = """
import os, signal, sys
from sae_lens_maira.cli.main import main

def interrupt(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith("000001.json"):
        os.kill(os.getpid(), signal.SIGINT)

sys.addaudithook(interrupt)
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_says_how_to_go_on_and_the_next_run_does(tmp_path):
    """A real process that gets a real signal when its second unit is done."""
    config = {
        "model": {"name": str(CHECKPOINT_PATH), "device": "cpu"},
        "source": {"kind": "phantom", "n_studies": 40, "seed": 3},
        "hook_names": ["blocks.0.hook_resid_post"],
        "dtype": "float32",
        "unit_size": 2,
    }
    (tmp_path / "cache.yaml").write_text(yaml.safe_dump(config))
    verb = ["cache", "--config", str(tmp_path / "cache.yaml"), "--out", str(tmp_path / "cache")]
    result = subprocess.run([sys.executable, "-c", INTERRUPTED, *verb], capture_output=True, text=True, timeout=LIMIT)
    assert result.returncode == 130, result.stderr[-2000:]
    said = re.fullmatch(
        r"sae-lens-maira: interrupted after (\d+) of 20 units; the same command goes on from there",
        result.stderr.splitlines()[-1],
    )
    assert said is not None
    assert 2 <= int(said[1]) < 20
    with pytest.raises(CacheError, match=rf"is not finished: {said[1]} of 20 units are done"):
        ActivationCache.open(tmp_path / "cache")
    assert main(verb) == 0
    assert ActivationCache.open(tmp_path / "cache").n_studies == 40


def test_a_second_run_does_nothing(cached_model, cache_path):
    before = {file: file.stat().st_mtime_ns for file in (cache_path / "units").iterdir()}
    write_cache(cached_model, cache_path, make_settings(), show_progress=False)
    assert {file: file.stat().st_mtime_ns for file in (cache_path / "units").iterdir()} == before


def test_what_decides_no_value_may_change_between_runs(cached_model, cache_path, tmp_path):
    settings = make_settings(workers=3, decode_ahead=1, max_skipped_share=0.5)
    write_cache(cached_model, tmp_path / "other", settings, show_progress=False)
    assert tree(tmp_path / "other") == tree(cache_path)


@pytest.mark.parametrize("together", [True, False])
def test_shards_equal_the_unsharded_cache(cached_model, cache_path, tmp_path, together):
    """In one shared folder, or in one folder per shard, merged by links."""
    parts = [tmp_path / "part" if together else tmp_path / f"part-{index}" for index in range(3)]
    reports = [
        write_cache(cached_model, part, make_settings(), shard=Shard(index, 3), show_progress=False)
        for index, part in enumerate(parts)
    ]
    assert [report.is_whole for report in reports] == [False, False, together]
    if together:
        assert tree(parts[0]) == tree(cache_path)
        return
    with pytest.raises(CacheError, match="still lacks 1 of 5 units, from unit 2 on"):
        merge_caches(parts[:2], tmp_path / "merged")
    merge_caches(parts, tmp_path / "merged")
    assert tree(tmp_path / "merged") == tree(cache_path)
    name = "units/000002.safetensors"
    assert (tmp_path / "merged" / name).samefile(parts[2] / name)


def test_shards_cover_all_units_once():
    for count in (1, 3, 8):
        units = [unit for index in range(count) for unit in Shard(index, count).of(20)]
        assert sorted(units) == list(range(20))
    for wrong in ("3/3", "1", "a/b", "-1/2", "0/0"):
        with pytest.raises(ValueError, match="shard"):
            Shard.parse(wrong)


def test_other_models_policies_sources_and_settings_are_refused_by_name(cached_model, cache_path, tmp_path):
    def refused(model, **kwargs) -> str:
        with pytest.raises(CacheMismatch) as error:
            write_cache(model, cache_path, make_settings(**kwargs), show_progress=False)
        return str(error.value)

    assert "another dtype (float32, here bfloat16)." in refused(cached_model, dtype="bfloat16")
    assert "another unit_size (5, here 4)." in refused(cached_model, unit_size=4)
    assert "another hook_names" in refused(cached_model, hook_names=("blocks.0.hook_resid_post",))
    assert "another source.content" in refused(make_model(make_studies(seed=4)))
    other = make_model(make_studies())
    with torch.no_grad():
        other.maira2.lm_head.weight[0, 0] += 1.0
    assert "another weights_fingerprint" in refused(other)
    other_policy = make_model(make_studies(), policy=TokenPolicy(image_tokens="none"))
    assert "another token_policy.image_tokens (last, here none)." in refused(other_policy)
    merged = tmp_path / "part"
    write_cache(cached_model, merged, make_settings(unit_size=11), show_progress=False)
    with pytest.raises(CacheMismatch, match="another unit_size"):
        merge_caches([cache_path, merged], tmp_path / "merged")


def fill_and_go_on(path: Path, cached_model, whole: Path, make_room) -> None:
    with pytest.raises(CacheError, match=r"cannot be written \(.*\); make room and run the same command again"):
        write_cache(cached_model, path, make_settings(), show_progress=False)
    assert not list(path.rglob("*.tmp"))
    make_room()
    write_cache(cached_model, path, make_settings(), show_progress=False)
    assert tree(path) == tree(whole)


def test_a_full_disk_stops_with_a_sentence_and_the_next_run_goes_on(cached_model, cache_path, tmp_path):
    """A small file system for this test, which only root may mount; the next test needs no rights."""
    size = sum(file.stat().st_size for file in cache_path.rglob("*") if file.is_file())
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["-t", "tmpfs", "-o"]
    mounted = subprocess.run(
        ["mount", *options, f"size={size // 2}", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"mounting a tmpfs is not permitted here ({mounted.stderr.strip()})")
    try:
        grow = ["mount", "-o", f"remount,size={4 * size}", str(disk)]
        fill_and_go_on(disk / "cache", cached_model, cache_path, lambda: subprocess.run(grow, check=True))
        assert any((disk / "cache").iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_file_size_limit_stops_with_a_sentence_and_the_next_run_goes_on(cached_model, cache_path, tmp_path):
    """The same error as for a full disk, on machines where nothing can be mounted."""
    largest = max(file.stat().st_size for file in cache_path.rglob("*.safetensors"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    restore = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)  # noqa: E731
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, before[1]))
    try:
        fill_and_go_on(tmp_path / "cache", cached_model, cache_path, restore)
    finally:
        restore()


def test_broken_studies_are_skipped_with_their_reason_and_without_text(tmp_path):
    studies = break_images(make_studies(), [3, 21])
    studies[7] = replace(studies[7], findings=None, sentences=())
    studies[8] = replace(studies[8], findings="Pneumothorax secretly. " * 1500, sentences=())
    model = make_model(studies)
    report = write_cache(model, tmp_path / "a", make_settings(max_skipped_share=0.2), show_progress=False)
    lines = [json.loads(line) for line in (tmp_path / "a" / "skipped.jsonl").read_text().splitlines()]
    assert [(line["index"], line["study_id"], line["reason"]) for line in lines] == [
        (3, studies[3].study_id, "broken image"),
        (7, studies[7].study_id, "no findings"),
        (8, studies[8].study_id, "too long"),
        (21, studies[21].study_id, "broken image"),
    ]
    assert lines[0]["detail"] == "frontal: OSError"
    assert "secretly" not in (tmp_path / "a" / "skipped.jsonl").read_text()
    assert report.describe().endswith("skipped: 2 broken image, 1 no findings, 1 too long")
    cached = torch.cat([block.study_index for block in ActivationCache.open(tmp_path / "a").blocks(model_hook())])
    assert sorted(set(range(N_STUDIES)) - set(cached.tolist())) == [3, 7, 8, 21]
    for index in range(2):
        write_cache(
            model,
            tmp_path / "b",
            make_settings(max_skipped_share=0.3),
            shard=Shard(index, 2),
            show_progress=False,
        )
    assert tree(tmp_path / "b") == tree(tmp_path / "a")


def model_hook() -> str:
    return make_settings().hook_names[0]


def test_too_many_broken_studies_stop_the_run_and_a_higher_share_goes_on(tmp_path):
    model = make_model(break_images(make_studies(), [0, 1, 2]))
    with pytest.raises(
        CacheError, match=r"^3 of 22 studies cannot be cached \(3 broken image\), more than max_skipped_"
    ):
        write_cache(model, tmp_path, make_settings(), show_progress=False)
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == 3
    assert not (tmp_path / "manifest.json").exists()
    report = write_cache(model, tmp_path, make_settings(max_skipped_share=0.2), show_progress=False)
    assert report.is_whole
    assert report.n_studies == N_STUDIES - 3


def test_a_unit_of_broken_studies_only_is_empty(tmp_path):
    model = make_model(break_images(make_studies(), range(5)))
    write_cache(model, tmp_path, make_settings(max_skipped_share=0.5), show_progress=False)
    indices = torch.cat([block.study_index for block in ActivationCache.open(tmp_path).blocks(model_hook())])
    assert indices.unique().tolist() == list(range(5, N_STUDIES))


class TroubledImage:
    """An image that the machine cannot open at the moment."""

    def open(self):
        raise OSError(errno.EMFILE, "Too many open files")


def test_trouble_of_the_machine_is_not_blamed_on_the_study(tmp_path):
    studies = make_studies(4)
    studies[2] = replace(studies[2], frontal=TroubledImage())
    with pytest.raises(OSError, match="Too many open files"):
        write_cache(make_model(studies), tmp_path, make_settings(max_skipped_share=1.0), show_progress=False)
    assert not (tmp_path / "manifest.json").exists()
