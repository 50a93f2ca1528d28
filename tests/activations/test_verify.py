"""Damage is found and named."""

import json
import shutil

import pytest

from sae_lens_maira.activations import ActivationCache
from sae_lens_maira.activations.verify import verify_cache
from sae_lens_maira.activations.write import write_cache
from sae_lens_maira.cli.main import main
from sae_lens_maira.errors import CacheError
from tests.activations.conftest import HOOKS, make_settings, tree


@pytest.fixture
def copy(cache_path, tmp_path):
    return shutil.copytree(cache_path, tmp_path / "copy")


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.999])
def test_a_flipped_byte_is_found_and_its_file_named(copy, cached_model, cache_path, share, capsys):
    assert verify_cache(copy, show_progress=False) == []
    path = copy / "units" / "000003.safetensors"
    flip(path, int(share * path.stat().st_size))
    (problem,) = verify_cache(copy, show_progress=False)
    assert "000003.safetensors' is not as it was written; delete it" in problem
    assert main(["cache", "--verify", str(copy)]) == 2
    assert "000003.safetensors' is not as it was written" in capsys.readouterr().err
    path.unlink()
    write_cache(cached_model, copy, make_settings(), show_progress=False)
    assert tree(copy) == tree(cache_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("units/000002.json", "000002.json"),
        ("manifest.json", "manifest.json"),
        ("skipped.jsonl", "skipped.jsonl"),
    ],
)
def test_other_files_are_checked_against_the_units(copy, name, said):
    path = copy / name
    path.write_text(path.read_text().replace("5", "6") if name != "skipped.jsonl" else '{"index": 1}\n')
    problems = verify_cache(copy, show_progress=False)
    assert len(problems) == 1
    assert said in problems[0]


def test_a_changed_header_is_found(copy):
    header = json.loads((copy / "cache.json").read_text())
    header["identity"]["weights_fingerprint"] = "0" * 16
    (copy / "cache.json").write_text(json.dumps(header))
    problems = verify_cache(copy, show_progress=False)
    assert len(problems) == 5
    assert all("the header of this one was changed" in problem for problem in problems)
    with pytest.raises(CacheError, match="belongs to another cache"):
        next(ActivationCache.open(copy).blocks(HOOKS[0]))


def test_missing_cut_and_foreign_files_are_one_sentence(copy, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no cache of activations in .*; make one with"):
        ActivationCache.open(tmp_path / "nowhere")
    path = copy / "units" / "000001.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CacheError, match=r"000001\.safetensors' is cut short"):
        [block.norms[HOOKS[0]].sum() for block in ActivationCache.open(copy).blocks(HOOKS[0])]
    path.write_bytes(data[:100])
    with pytest.raises(CacheError, match="is missing or damaged"):
        list(ActivationCache.open(copy).blocks(HOOKS[0]))
    path.unlink()
    assert "000001.safetensors' is not as it was written" in verify_cache(copy, show_progress=False)[0]
    (copy / "cache.json").write_text('{"format": "other"}')
    with pytest.raises(CacheError, match="is no file of a cache"):
        ActivationCache.open(copy)
    (copy / "cache.json").write_text('{"format": "sae-lens-maira activations", "version": 1}')
    with pytest.raises(CacheError, match="has version 1 of the format, but this package reads version 2"):
        ActivationCache.open(copy)


def test_the_verb_wants_one_job(capsys, tmp_path):
    assert main(["cache", "--out", str(tmp_path)]) == 2
    assert "Give exactly one of --config, --verify, --merge" in capsys.readouterr().err
    assert main(["cache", "--verify", str(tmp_path), "--dtype", "x"]) == 2
    assert "--dtype is a setting of --config, which is not given." in capsys.readouterr().err
