"""Loading, saving, and what is said about checkpoints that are not sound."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from sae_lens_maira.errors import CheckpointError
from sae_lens_maira.maira2 import FindingsPrompt, Maira2Config, Maira2ForConditionalGeneration, Maira2Processor

load = Maira2ForConditionalGeneration.from_pretrained


@pytest.fixture
def copy(checkpoint_path, tmp_path):
    """A copy of the reference checkpoint that a test may break."""
    return shutil.copytree(checkpoint_path, tmp_path / "copy")


@pytest.fixture
def sharded(checkpoint_path, tmp_path):
    load(checkpoint_path).save_pretrained(tmp_path / "sharded", max_shard_size="300KB")
    return tmp_path / "sharded"


@pytest.fixture
def inputs(processor, frontal, lateral):
    return processor(FindingsPrompt(frontal, lateral, assistant_text="Clear lungs."))


@torch.no_grad()
def assert_same_outputs(model, expected, inputs):
    assert torch.equal(model.eval()(**inputs).logits, expected.eval()(**inputs).logits)


def test_auto_classes_know_the_model(checkpoint_path, tiny_model, inputs):
    assert type(AutoConfig.from_pretrained(checkpoint_path)) is Maira2Config
    model = AutoModelForImageTextToText.from_pretrained(checkpoint_path)
    assert type(model) is Maira2ForConditionalGeneration
    assert_same_outputs(model, tiny_model, inputs)


def test_saving_and_loading_gives_identical_outputs_in_the_official_layout(
    checkpoint_path, tiny_model, inputs, tmp_path
):
    tiny_model.save_pretrained(tmp_path)
    assert_same_outputs(load(tmp_path), tiny_model, inputs)
    saved, official = load_file(tmp_path / "model.safetensors"), load_file(checkpoint_path / "model.safetensors")
    assert saved.keys() == official.keys()
    assert all(torch.equal(saved[name], official[name]) for name in official)


def test_saved_config_reads_on_both_stacks(checkpoint_path, tiny_model, tmp_path):
    """Rotary scaling is written in the older spelling; transformers 4 would not see the newer one."""
    tiny_model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["text_config"]["rope_scaling"]["factor"] == 1.5
    assert saved["text_config"]["rope_theta"] == 10000.0
    assert "rope_parameters" not in saved["text_config"]
    assert saved["tie_word_embeddings"] is False
    official = json.loads((checkpoint_path / "config.json").read_text())
    for name in ("image_token_index", "projector_n_layers", "vision_feature_layer", "vision_feature_select_strategy"):
        assert saved[name] == official[name]


def test_the_newer_rope_spelling_is_read_too(copy, tiny_model, inputs):
    path = copy / "config.json"
    config = json.loads(path.read_text())
    text = config["text_config"]
    scaling = text.pop("rope_scaling")
    text["rope_parameters"] = {
        "rope_type": "linear", "factor": scaling["factor"], "rope_theta": text.pop("rope_theta")
    }  # fmt: skip
    path.write_text(json.dumps(config))
    assert_same_outputs(load(copy), tiny_model, inputs)


def test_sharded_checkpoints_load(sharded, tiny_model, inputs):
    assert len(list(sharded.glob("*.safetensors"))) > 2
    assert_same_outputs(load(sharded), tiny_model, inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_weight_has_the_dtype_asked_for(checkpoint_path, dtype, inputs):
    model = load(checkpoint_path, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert torch.isfinite(model(**inputs).logits).all()


def test_a_device_map_is_followed(checkpoint_path, tiny_model, inputs):
    assert_same_outputs(load(checkpoint_path, device_map={"": "cpu"}), tiny_model, inputs)


def test_a_folder_that_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="is not a MAIRA-2 checkpoint: it has no config.json"):
        load(tmp_path)


def test_a_checkpoint_of_another_model(copy):
    (copy / "config.json").write_text(json.dumps({"model_type": "llava"}))
    with pytest.raises(CheckpointError, match="model_type 'llava', not 'maira2'"):
        load(copy)


def test_a_broken_config(copy):
    (copy / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json' is not valid JSON"):
        load(copy)


def test_a_folder_without_safetensors(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="only safetensors are read"):
        load(copy)


def test_a_missing_shard(sharded):
    lost = min(sharded.glob("model-*.safetensors"))
    lost.unlink()
    with pytest.raises(CheckpointError, match=rf"lacks 1 of \d+ shards \({lost.name}\)"):
        load(sharded)


def test_a_folder_without_a_processor(copy):
    (copy / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no MAIRA-2 processor: tokenizer\.json missing"):
        Maira2Processor.from_pretrained(copy)


@pytest.mark.parametrize("n_bytes", [1000, 100])
def test_a_shard_cut_short(copy, n_bytes):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-n_bytes] if n_bytes == 1000 else path.read_bytes()[:n_bytes])
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        load(copy)


@pytest.mark.parametrize(
    "key",
    [
        "language_model.model.layers.3.mlp.up_proj.weight",
        "language_model.lm_head.weight",
        "vision_tower.layernorm.bias",
    ],
)
def test_a_missing_key(copy, key):
    tensors = load_file(copy / "model.safetensors")
    del tensors[key]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"1 missing .*{key.split('.')[-2]}"):
        load(copy)


def test_a_key_left_over(copy):
    tensors = load_file(copy / "model.safetensors")
    tensors["multi_modal_projector.layers.8.weight"] = torch.zeros(64, 64)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 left over \(.*multi_modal_projector\.layers\.8\.weight"):
        load(copy)


def test_a_key_of_another_shape(copy):
    tensors = load_file(copy / "model.safetensors")
    tensors["multi_modal_projector.layers.6.bias"] = torch.zeros(65)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"multi_modal_projector\.layers\.6\.bias"):
        load(copy)


def test_an_input_longer_than_the_models_positions(tiny_model, processor, frontal):
    inputs = processor(FindingsPrompt(frontal, indication="Fever. " * 3000))
    n_tokens = inputs["input_ids"].shape[1]
    assert n_tokens > 6144
    message = f"The input has {n_tokens} tokens but the model has 6144 positions; shorten"
    with pytest.raises(ValueError, match=message):
        tiny_model(**inputs)
    with pytest.raises(ValueError, match=message):
        tiny_model.generate(**inputs, max_new_tokens=1)
