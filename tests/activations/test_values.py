"""The contents of a cache, compared with the live model, the safetensors library and the documented format."""

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sae_lens_maira.activations import ActivationCache, ActivationStream
from sae_lens_maira.activations.decode_ahead import IMAGE_NAMES, hash_image
from sae_lens_maira.activations.format import identity_hash
from sae_lens_maira.activations.header import read_header
from sae_lens_maira.activations.live import LiveActivations
from sae_lens_maira.activations.stream import until_study
from sae_lens_maira.activations.unit_file import write_unit
from sae_lens_maira.activations.write import make_unit, write_cache
from sae_lens_maira.data.study import TokenKind
from sae_lens_maira.errors import CacheError
from tests.activations.conftest import HOOKS, N_STUDIES, make_model, make_settings, make_studies


def live_activations(model, index, hook_name):
    """A study's row and activations, run alone."""
    tokens = model.reader.rows([index], None)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=[hook_name], return_type=None)
    return tokens[0], cache[hook_name][0]


@pytest.mark.parametrize("hook_name", HOOKS)
def test_activations_and_tokens_equal_those_of_the_live_model(cache_path, cached_model, hook_name):
    cache = ActivationCache.open(cache_path)
    seen = []
    for block in cache.blocks(hook_name):
        for index in block.study_index.unique().tolist():
            own = block.study_index == index
            tokens, live = live_activations(cached_model, index, hook_name)
            scale = live.abs().max()
            assert torch.equal(block.token_ids[own], tokens)
            assert (block.activations[hook_name][own] - live).abs().max() <= 1e-5 * scale
            assert torch.equal(block.position[own], torch.arange(len(tokens)))
            assert torch.allclose(block.norms[hook_name][own], live.norm(dim=-1), rtol=1e-5)
            seen.append(index)
    assert seen == list(range(N_STUDIES))
    assert cache.n_studies == N_STUDIES
    assert cache.n_tokens == sum(len(block.kind) for block in cache.blocks(hook_name))


def test_kinds_are_those_of_the_rows_dataset(cache_path, cached_model, tmp_path):
    rows = cached_model.rows(512, cache_path=tmp_path, show_progress=False).dataset
    kinds = np.concatenate([np.array(row["kinds"]) for row in rows])
    cached = torch.cat([block.kind for block in ActivationCache.open(cache_path).blocks(HOOKS[0])])
    assert cached.tolist() == kinds[kinds != TokenKind.PAD].tolist()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_smaller_dtypes_are_the_rounded_values(cache_path, cached_model, tmp_path, dtype):
    write_cache(cached_model, tmp_path / dtype, make_settings(dtype=dtype), show_progress=False)
    small, full = (ActivationCache.open(path) for path in (tmp_path / dtype, cache_path))
    for ours, theirs in zip(small.blocks(HOOKS[0]), full.blocks(HOOKS[0]), strict=True):
        assert ours.activations[HOOKS[0]].dtype == getattr(torch, dtype)
        assert torch.equal(ours.activations[HOOKS[0]], theirs.activations[HOOKS[0]].to(getattr(torch, dtype)))


def test_units_are_plain_safetensors_as_the_specification_says(cache_path):
    tensors = load_file(cache_path / "units" / "000001.safetensors")
    n_tokens = len(tensors["kind"])
    described = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    assert described == {
        **dict.fromkeys(HOOKS, (torch.float32, (n_tokens, 64))),
        **{f"norms.{name}": (torch.float32, (n_tokens,)) for name in HOOKS},
        **dict.fromkeys(("token_ids", "study_index", "position"), (torch.int32, (n_tokens,))),
        "kind": (torch.uint8, (n_tokens,)),
    }
    assert tensors["study_index"].unique().tolist() == [5, 6, 7, 8, 9]
    record = json.loads((cache_path / "units" / "000001.json").read_text())
    data = (cache_path / "units" / "000001.safetensors").read_bytes()
    assert record["sha256"] == hashlib.sha256(data).hexdigest()
    assert record["n_bytes"] == len(data)
    manifest = json.loads((cache_path / "manifest.json").read_text())
    assert manifest["units"][1] == record
    assert [unit["n_studies"] for unit in manifest["units"]] == [5, 5, 5, 5, 2]


def test_image_hashes_are_those_of_the_pixels(cache_path):
    studies = make_studies()
    (first, *_) = next(iter(ActivationCache.open(cache_path))).studies
    image = studies[0].frontal.open()
    header = f"{image.mode} {image.width} {image.height} ".encode()
    assert first.images["frontal"] == hashlib.sha256(header + image.tobytes()).hexdigest()
    expected = {"frontal"} | {
        name
        for name, image in (("lateral", studies[0].lateral), ("prior", studies[0].prior_frontal))
        if image is not None
    }
    assert set(first.images) == expected


def test_context_size_cuts_rows(cached_model, cache_path, tmp_path):
    write_cache(cached_model, tmp_path / "cut", make_settings(context_size=12), show_progress=False)
    for ours, theirs in zip(
        ActivationCache.open(tmp_path / "cut").blocks(HOOKS[0]),
        ActivationCache.open(cache_path).blocks(HOOKS[0]),
        strict=True,
    ):
        assert torch.equal(ours.activations[HOOKS[0]], theirs.activations[HOOKS[0]][theirs.position < 12])


def test_a_dtype_that_cannot_hold_the_values_is_an_error_not_infinity(tmp_path):
    model = make_model(make_studies(2))
    with torch.no_grad():
        model.W_E.mul_(1e6)
    with pytest.raises(CacheError, match="which float16 cannot hold; choose dtype bfloat16 or float32"):
        write_cache(model, tmp_path, make_settings(dtype="float16"), show_progress=False)


def test_a_hook_point_that_does_not_exist_or_was_not_cached_is_refused(cached_model, cache_path, tmp_path):
    with pytest.raises(ValueError, match=r"no hook point 'blocks\.0\.hook_resid_pots'.*did you mean"):
        write_cache(cached_model, tmp_path, make_settings(hook_names=("blocks.0.hook_resid_pots",)))
    with pytest.raises(CacheError, match="cache hook points of blocks"):
        write_cache(cached_model, tmp_path, make_settings(hook_names=("hook_image_embeds",)))
    with pytest.raises(CacheError, match=r"has no 'blocks\.2\.hook_resid_post'; it has blocks\.0"):
        next(ActivationCache.open(cache_path).blocks("blocks.2.hook_resid_post"))


def test_a_unit_is_a_function_of_its_number(cached_model, cache_path, tmp_path):
    """A unit that is made alone, as a scheduler may do, is written to the same bytes."""
    header = read_header(cache_path)
    for unit in (4, 1):
        block = make_unit(cached_model, make_settings(workers=1, decode_ahead=1), unit)
        write_unit(tmp_path, unit, identity_hash(header["identity"]), block)
        for suffix in ("json", "safetensors"):
            name = f"units/{unit:06d}.{suffix}"
            assert (tmp_path / name).read_bytes() == (cache_path / name).read_bytes()


def test_live_and_cached_streams_give_the_same_blocks(cached_model, cache_path):
    """Also for a part of the source, whose first and last blocks are cut."""
    cache = ActivationCache.open(cache_path)
    settings = make_settings()
    live = LiveActivations(cached_model, HOOKS, block_size=5, max_batch_tokens=settings.max_batch_tokens)
    assert isinstance(live, ActivationStream)
    assert isinstance(cache, ActivationStream)
    assert live.hook_names == cache.hook_names
    for _ in range(2):
        for ours, theirs in zip(live, cache, strict=True):
            for name in ("token_ids", "study_index", "position", "kind"):
                assert torch.equal(getattr(ours, name), getattr(theirs, name))
            for hook_name in HOOKS:
                assert torch.equal(ours.activations[hook_name], theirs.activations[hook_name])
                assert torch.equal(ours.norms[hook_name], theirs.norms[hook_name])
            assert (ours.studies, ours.skipped) == (theirs.studies, theirs.skipped)
    part = list(LiveActivations(cached_model, HOOKS[:1], indices=[3, 4, 10, 11, 12], block_size=5))
    assert [[study.index for study in block.studies] for block in part] == [[3, 4], [10, 11, 12]]
    whole = torch.cat([block.study_index for block in until_study(cache, 11)])
    assert whole.unique().tolist() == list(range(15))


def test_an_observer_gets_the_images_that_the_model_gets(cached_model):
    seen = {}
    stream = LiveActivations(
        cached_model, HOOKS[:1], indices=range(3), observer=lambda index, images: seen.update({index: dict(images)})
    )
    (block,) = stream
    assert sorted(seen) == [0, 1, 2]
    for study in block.studies:
        hashes = {IMAGE_NAMES[view]: hash_image(image) for view, image in seen[study.index].items()}
        assert hashes == study.images
