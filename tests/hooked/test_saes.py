"""SAEs attached to the model, in forward passes and generation, against SAE-Lens's arithmetic written out."""

import copy

import pytest
import torch
from sae_lens import SAE
from sae_lens.saes.standard_sae import StandardSAEConfig

from sae_lens_maira.errors import HookPointError
from sae_lens_maira.hooked import HookedMaira2
from tests.plain_maira2 import REFERENCE_CHECKPOINT, phantom_studies

HOOK = "blocks.2.hook_resid_post"
ACTS = f"{HOOK}.hook_sae_acts_post"
FIXED_LENGTH = {"max_new_tokens": 6, "min_new_tokens": 6}


@pytest.fixture(scope="module")
def studies():
    return phantom_studies()


@pytest.fixture
def model(studies):
    return HookedMaira2.from_pretrained(REFERENCE_CHECKPOINT, studies, dtype=torch.float32)


@pytest.fixture
def tokens(model, studies):
    return model.reader.rows(range(len(studies)), None)


@pytest.fixture(scope="module")
def sae():
    torch.manual_seed(0)
    config = StandardSAEConfig(d_in=64, d_sae=32).to_dict()
    metadata = {"hook_name": HOOK, "model_name": "maira-2", "context_size": 48, "prepend_bos": False}
    made = SAE.from_dict(
        {**config, "architecture": "standard", "dtype": "float32", "device": "cpu", "metadata": metadata}
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.3)
    return made


@torch.no_grad()
def test_the_reconstruction_takes_the_activations_place(model, tokens, sae):
    activations = model.run_with_cache(tokens, names_filter=HOOK)[1][HOOK]
    expected = model.run_with_hooks(tokens, fwd_hooks=[(HOOK, lambda value, hook: sae(value))])
    assert torch.equal(model.run_with_saes(tokens, saes=sae), expected)
    _, cache = model.run_with_cache_with_saes(tokens, saes=[sae], names_filter=ACTS)
    assert torch.equal(cache[ACTS], sae.encode(activations))
    assert not torch.equal(model(tokens), expected)


@torch.no_grad()
def test_with_the_error_term_only_interventions_on_latents_change_anything(model, tokens, sae):
    plain = model(tokens)
    spliced = model.run_with_saes(tokens, saes=sae, use_error_term=True)
    assert torch.allclose(spliced, plain, rtol=1e-4, atol=1e-4)
    activations = model.run_with_cache(tokens, names_filter=HOOK)[1][HOOK]
    latent = int(sae.encode(activations).amax(dim=(0, 1)).argmax())

    def ablate(latents, hook):
        latents[..., latent] = 0

    def by_hand(value, hook):
        return value - sae.encode(value)[..., latent, None] * sae.W_dec[latent]

    ablated = model.run_with_hooks_with_saes(tokens, saes=sae, use_error_term=True, fwd_hooks=[(ACTS, ablate)])
    expected = model.run_with_hooks(tokens, fwd_hooks=[(HOOK, by_hand)])
    assert torch.allclose(ablated, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ablated, plain, rtol=1e-3, atol=1e-3)


def test_saes_are_attached_until_they_are_reset(model, tokens, sae):
    before = set(model.hook_dict)
    model.add_sae(sae)
    assert model.acts_to_saes == {HOOK: sae}
    assert ACTS in model.hook_dict
    other = model.with_studies(model.studies)
    assert not other.acts_to_saes
    with model.saes(copy.deepcopy(sae)):
        assert model.acts_to_saes[HOOK] is not sae
    assert model.acts_to_saes == {HOOK: sae}
    model.reset_saes()
    assert (model.acts_to_saes, set(model.hook_dict)) == ({}, before)
    with torch.no_grad():
        assert torch.equal(model(tokens), other(tokens))


@torch.no_grad()
def test_tokens_can_be_left_out(model, tokens, sae):
    pad = model.tokenizer.pad_token_id
    kept = int(tokens[0, 5])
    found = {}
    with model.saes(sae, exclude_special_tokens=[pad, kept]):
        model.run_with_hooks(tokens, fwd_hooks=[(f"{HOOK}.hook_sae_output", lambda v, hook: found.update(out=v))])
    activations = model.run_with_cache(tokens, names_filter=HOOK)[1][HOOK]
    is_left_out = (tokens == pad) | (tokens == kept)
    assert torch.equal(found["out"][is_left_out], activations[is_left_out])
    assert not torch.equal(found["out"][~is_left_out], activations[~is_left_out])


def test_saes_are_there_while_generating(model, studies, sae):
    plain = model.generate(studies, **FIXED_LENGTH)
    with model.hooks(fwd_hooks=[(HOOK, lambda value, hook: sae(value))]):
        expected = model.generate(studies, **FIXED_LENGTH)
    with model.saes(sae):
        assert model.generate(studies, **FIXED_LENGTH) == expected
    with model.saes(sae, use_error_term=True):
        assert model.generate(studies, **FIXED_LENGTH) == plain
    with model.saes(sae, exclude_special_tokens=True), pytest.raises(HookPointError, match="no meaning while"):
        model.generate(studies, **FIXED_LENGTH)


def test_an_sae_of_another_place_is_refused(model, sae):
    elsewhere = copy.deepcopy(sae)
    elsewhere.cfg.metadata.hook_name = "blocks.9.hook_resid_post"
    with pytest.raises(HookPointError, match=r"no hook point 'blocks\.9\.hook_resid_post'"):
        model.add_sae(elsewhere)
