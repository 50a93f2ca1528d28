"""The fingerprint of a model's weights."""

import pytest
import torch
from torch import nn

from sae_lens_maira.hooked.identity import fingerprint_weights
from sae_lens_maira.maira2 import Maira2ForConditionalGeneration
from tests.conftest import CHECKPOINT_PATH


class Wrapped(nn.Module):
    """Puts the same modules under a longer path."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.another_name = inner


@pytest.fixture
def model() -> Maira2ForConditionalGeneration:
    return Maira2ForConditionalGeneration.from_pretrained(CHECKPOINT_PATH, dtype=torch.float32)


def test_every_version_of_transformers_finds_the_same_fingerprint(model):
    """Versions 4 and 5 name the weights of the image tower differently."""
    assert fingerprint_weights(model) == "8e5a880b7a815b5f"


def test_where_the_model_sits_does_not_matter(model):
    assert fingerprint_weights(Wrapped(model)) == fingerprint_weights(model)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("layers.0.self_attn.q_proj", "layers.0.self_attn.k_proj"),
        ("layers.0.mlp.up_proj", "layers.1.mlp.up_proj"),
        ("layers.1.input_layernorm", "layers.1.post_attention_layernorm"),
    ],
)
def test_swapped_weights_of_one_shape_have_another_fingerprint(model, one, other):
    before = fingerprint_weights(model)
    first, second = (model.model.language_model.get_submodule(name) for name in (one, other))
    assert first.weight.shape == second.weight.shape
    first.weight, second.weight = second.weight, first.weight
    assert fingerprint_weights(model) != before


def test_changed_and_reshaped_weights_have_another_fingerprint(model):
    before = fingerprint_weights(model)
    layer = model.model.language_model.layers[1].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.reshape(-1, 2 * layer.weight.shape[1]))
    assert fingerprint_weights(model) != before
    layer.weight = nn.Parameter(layer.weight.reshape(-1, layer.weight.shape[1] // 2))
    assert fingerprint_weights(model) == before
    with torch.no_grad():
        layer.weight.mul_(1.01)
    assert fingerprint_weights(model) != before
