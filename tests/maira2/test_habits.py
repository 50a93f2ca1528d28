"""What a user of transformers expects of any model, tried on this one.

These are the habits that transformers' own common tests check. MAIRA-2 differs on purpose in two: a checkpoint with a
missing, unexpected or misshapen tensor is an error and no warning (``test_checkpoint.py``), and
``vision_feature_layer`` chooses among the backbone's feature maps, not its hidden states, so lists are refused.
"""

import copy
from typing import Any

import pytest
import torch
from transformers import AutoModel

from sae_lens_maira.errors import PromptError
from sae_lens_maira.maira2 import FindingsPrompt, Maira2Config, Maira2ForConditionalGeneration, Maira2Model
from sae_lens_maira.maira2.configuration import TRANSFORMERS_5


@pytest.fixture
def model(tiny_model):
    """A copy that a test may change."""
    return copy.deepcopy(tiny_model)


@pytest.fixture
def inputs(processor, frontal, lateral):
    return processor(FindingsPrompt(frontal, lateral, indication="Fever.", assistant_text="Clear lungs."))


def relative(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


@torch.no_grad()
def test_more_token_embeddings_leave_old_logits_as_they_were(model, inputs, tmp_path):
    before = model(**inputs).logits
    n_tokens = model.config.text_config.vocab_size
    model.resize_token_embeddings(n_tokens + 3)
    after = model(**inputs).logits
    assert model.config.text_config.vocab_size == n_tokens + 3
    assert after.shape[-1] == n_tokens + 3
    assert torch.equal(after[..., :n_tokens], before)
    model.save_pretrained(tmp_path)
    assert torch.equal(Maira2ForConditionalGeneration.from_pretrained(tmp_path).eval()(**inputs).logits, after)


@torch.no_grad()
def test_input_and_output_embeddings_are_apart(model, inputs):
    model.tie_weights()
    before = model(**inputs).logits
    assert model.get_output_embeddings().weight.data_ptr() != model.get_input_embeddings().weight.data_ptr()
    model.get_output_embeddings().weight.mul_(2)
    assert relative(model(**inputs).logits, 2 * before) < 1e-6


@torch.no_grad()
def test_embeddings_can_be_exchanged(model, inputs):
    embeddings = copy.deepcopy(model.get_input_embeddings())
    embeddings.weight.zero_()
    model.set_input_embeddings(embeddings)
    assert model.get_input_embeddings() is embeddings
    hidden = model(**inputs, output_hidden_states=True).hidden_states[0]
    is_text = inputs["input_ids"] != model.config.image_token_index
    assert (hidden[is_text] == 0).all()
    assert (hidden[~is_text] != 0).any()


@torch.no_grad()
def test_embeddings_in_place_of_ids_give_the_same(tiny_model, inputs):
    expected = tiny_model(**inputs).logits
    embedded = tiny_model.get_input_embeddings()(inputs["input_ids"])
    rest = {name: inputs[name] for name in ("attention_mask", "pixel_values")}
    assert torch.equal(tiny_model(inputs_embeds=embedded, **rest).logits, expected)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_hidden_states_and_attentions_are_given_when_asked(checkpoint_path, inputs, attention):
    model = Maira2ForConditionalGeneration.from_pretrained(checkpoint_path, attn_implementation=attention).eval()
    text: Any = model.config.text_config
    n_tokens = inputs["input_ids"].shape[1]
    plain = model(**inputs)
    assert plain.hidden_states is None
    assert plain.attentions is None
    asked = model(**inputs, output_hidden_states=True, output_attentions=attention == "eager")
    assert len(asked.hidden_states) == text.num_hidden_layers + 1
    assert {tuple(state.shape) for state in asked.hidden_states} == {(1, n_tokens, text.hidden_size)}
    assert torch.equal(model.lm_head(asked.hidden_states[-1]), asked.logits)
    if attention == "eager":
        assert len(asked.attentions) == text.num_hidden_layers
        for weights in asked.attentions:
            assert weights.shape == (1, text.num_attention_heads, n_tokens, n_tokens)
            assert (weights.sum(dim=-1) - 1).abs().max() < 1e-5


@torch.no_grad()
def test_a_tuple_holds_what_the_output_object_holds(tiny_model, inputs):
    output = tiny_model(**inputs, output_hidden_states=True)
    as_tuple = tiny_model(**inputs, output_hidden_states=True, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], output.logits)


def test_the_loss_is_the_mean_over_labels(tiny_model, inputs):
    labels = inputs["input_ids"].masked_fill(inputs["token_kinds"] < 6, -100)
    output = tiny_model(**inputs, labels=labels)
    predicted = output.logits[0, :-1].log_softmax(dim=-1)
    wanted = labels[0, 1:]
    kept = wanted != -100
    by_hand = -predicted[kept].gather(1, wanted[kept][:, None]).mean()
    assert output.loss.item() == pytest.approx(by_hand.item(), rel=1e-5)


@torch.no_grad()
def test_logits_to_keep(tiny_model, inputs):
    kept = tiny_model(**inputs, logits_to_keep=2).logits
    assert kept.shape[1] == 2
    assert relative(kept, tiny_model(**inputs).logits[:, -2:]) < 1e-6


def gradients(model, inputs):
    model.train()
    model.zero_grad()
    model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_gradient_checkpointing_changes_no_gradient(model, inputs):
    expected = gradients(model, inputs)
    without = {name for name, _ in model.named_parameters()} - expected.keys()
    assert without <= {"model.vision_tower.embeddings.mask_token"}  # used for pretraining only
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    found = gradients(model, inputs)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-6 * gradient.abs().max().item())
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


@torch.no_grad()
def test_the_cache_of_a_prompt_can_be_continued(tiny_model, inputs):
    whole = tiny_model(**inputs).logits
    cut = inputs["input_ids"].shape[1] - 3
    start = tiny_model(input_ids=inputs["input_ids"][:, :cut], pixel_values=inputs["pixel_values"], use_cache=True)
    rest = tiny_model(input_ids=inputs["input_ids"][:, cut:], past_key_values=start.past_key_values, use_cache=True)
    assert relative(rest.logits, whole[:, cut:]) < 1e-5


@torch.no_grad()
def test_the_attention_implementation_can_be_changed(model, inputs):
    expected = model(**inputs).logits
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"
    assert relative(model(**inputs).logits, expected) < 1e-5


def test_a_new_model_has_finite_weights_of_the_right_size(checkpoint_path):
    config: Any = Maira2Config.from_pretrained(checkpoint_path)
    torch.manual_seed(0)
    model: Any = Maira2ForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), name
        assert parameter.abs().max() < 5, name
    projector: Any = model.model.multi_modal_projector.layers[0].weight
    assert projector.std().item() == pytest.approx(config.text_config.initializer_range, rel=0.2)


def test_the_config_can_be_copied_and_compared(tiny_model):
    config = tiny_model.config
    assert Maira2Config.from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert copy.deepcopy(config).to_dict() == config.to_dict()


@torch.no_grad()
def test_auto_model_gives_the_model_without_its_head(checkpoint_path, tiny_model, inputs):
    model = AutoModel.from_pretrained(checkpoint_path).eval()
    assert type(model) is Maira2Model
    own = {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    expected = tiny_model(**inputs, output_hidden_states=True).hidden_states[-1]
    assert torch.equal(model(**own).last_hidden_state, expected)


# Image features.


@torch.no_grad()
def test_image_features_come_with_what_the_tower_gave(tiny_model, inputs):
    pixels = inputs["pixel_values"]
    tower = tiny_model.model.vision_tower(pixels, output_hidden_states=True)
    expected = tiny_model.model.multi_modal_projector(tower.feature_maps[-1][:, 1:])
    found = tiny_model.get_image_features(pixels, output_hidden_states=True)
    embeddings = found.pooler_output if TRANSFORMERS_5 else found
    assert torch.equal(torch.stack(list(embeddings)), expected)
    if TRANSFORMERS_5:
        assert torch.equal(found.last_hidden_state, tower.feature_maps[-1])
        assert len(found.hidden_states) == len(tower.hidden_states)
        assert all(torch.equal(a, b) for a, b in zip(found.hidden_states, tower.hidden_states, strict=True))
        assert tiny_model.get_image_features(pixels).hidden_states is None
        as_tuple = tiny_model.get_image_features(pixels, return_dict=False)
        assert torch.equal(as_tuple[0], tower.feature_maps[-1])


@torch.no_grad()
def test_the_strategy_is_honored(tiny_model, processor, frontal, monkeypatch):
    inputs = processor(FindingsPrompt(frontal))
    found = tiny_model.get_image_features(inputs["pixel_values"], vision_feature_select_strategy="full")
    embeddings = found.pooler_output if TRANSFORMERS_5 else found
    assert embeddings[0].shape[0] == processor.n_image_tokens + 1
    with pytest.raises(ValueError, match="do not match"):
        tiny_model(**inputs, vision_feature_select_strategy="full")
    monkeypatch.setattr(processor, "vision_feature_select_strategy", "full")
    longer = processor(FindingsPrompt(frontal))
    full = tiny_model(**longer, vision_feature_select_strategy="full").logits
    assert full.shape[1] == inputs["input_ids"].shape[1] + 1
    with pytest.raises(ValueError, match="do not match"):
        tiny_model(**longer)


@torch.no_grad()
def test_the_feature_layer_is_honored(checkpoint_path, processor, frontal, tmp_path):
    config = Maira2Config.from_pretrained(checkpoint_path).to_dict()
    for name in ("out_indices", "stage_names"):
        config["vision_config"].pop(name, None)
    config["vision_config"]["out_features"] = ["stage2", "stage3"]
    model = Maira2ForConditionalGeneration.from_pretrained(checkpoint_path, config=Maira2Config(**config)).eval()
    inputs = processor(FindingsPrompt(frontal))
    maps = model.model.vision_tower(inputs["pixel_values"]).feature_maps
    assert len(maps) == 2
    for layer in (-2, -1, 0, 1):
        expected = model.model.multi_modal_projector(maps[layer][:, 1:])
        found: Any = model.get_image_features(inputs["pixel_values"], vision_feature_layer=layer)
        assert torch.equal(torch.stack(list(found.pooler_output if TRANSFORMERS_5 else found)), expected)
    assert not torch.equal(model(**inputs, vision_feature_layer=0).logits, model(**inputs).logits)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"vision_feature_layer": -2}, r"vision_feature_layer is -2, but the vision backbone gives 1 .* \(stage3\)"),
        ({"vision_feature_layer": [-1, -2]}, r"vision_feature_layer is \[-1, -2\]"),
        ({"vision_feature_select_strategy": "cls"}, "strategy is 'cls'; expected 'default' or 'full'"),
        ({"image_sizes": torch.tensor([[70, 70]])}, "leave image_sizes out"),
    ],
)
def test_what_cannot_be_honored_is_refused(checkpoint_path, inputs, kwargs, message):
    # Not the shared model: its annotations are checked at run time, and would refuse first.
    from sae_lens_maira.maira2.modeling import Maira2Model

    unchecked = getattr(Maira2Model.get_image_features, "__wrapped__", Maira2Model.get_image_features)
    model = Maira2Model.from_pretrained(checkpoint_path)
    with pytest.raises(PromptError, match=message):
        unchecked(model, inputs["pixel_values"], **kwargs)
