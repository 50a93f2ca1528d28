"""Edits against their formulas, written out position by position."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens_maira.errors import SteeringError
from sae_lens_maira.hooked.dictionary import Dictionary
from sae_lens_maira.hooked.edits import (
    Ablate,
    Add,
    AddDirection,
    Cap,
    Clamp,
    Scale,
    ScaleDirection,
    compile_rows,
)
from tests.steered_sae import D_SAE, HOOK, edited_plainly, make_dictionary

D_IN = 12
DICTIONARY = make_dictionary(D_IN)
SAE = DICTIONARY.sae
VECTOR = torch.linspace(-1, 2, D_IN)

doses = st.floats(-4, 4, allow_nan=False, width=32)
features = st.integers(0, D_SAE - 1)
edits = st.one_of(
    st.builds(Add, features, doses),
    st.builds(Clamp, features, doses),
    st.builds(Scale, features, doses),
    st.builds(Cap, features, doses),
    st.builds(Ablate, features),
    st.builds(AddDirection, st.just(VECTOR), doses, st.just(HOOK)),
    st.builds(ScaleDirection, st.just(VECTOR), doses, st.just(HOOK)),
)
rows_of_edits = st.lists(
    st.lists(edits, max_size=4, unique_by=lambda edit: getattr(edit, "feature", id(edit))), min_size=1, max_size=4
)


def compiled(*rows):
    return compile_rows([tuple(row) for row in rows], {HOOK: DICTIONARY}, D_IN, "cpu")


@settings(max_examples=40, deadline=None)
@given(rows_of_edits, st.integers(0, 10_000))
@torch.no_grad()
def test_every_row_gets_its_own_edits_and_no_others(rows, seed):
    x = 3 * torch.randn(len(rows), 3, D_IN, generator=torch.Generator().manual_seed(seed))
    found = compiled(*rows)
    change = found[HOOK].change(x) if found else torch.zeros_like(x)
    for row, own in enumerate(rows):
        expected = edited_plainly(x[row], tuple(own), SAE) - x[row]
        torch.testing.assert_close(change[row], expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(rows_of_edits, st.lists(st.integers(0, 3), min_size=1, max_size=6))
@torch.no_grad()
def test_selected_rows_keep_their_edits(rows, chosen):
    chosen = [index % len(rows) for index in chosen]
    found = compiled(*rows)
    if not found:
        return
    x = torch.randn(len(rows), 2, D_IN, generator=torch.Generator().manual_seed(1))
    selected = found[HOOK].select(torch.tensor(chosen)).change(x[chosen])
    torch.testing.assert_close(selected, found[HOOK].change(x)[chosen])


@torch.no_grad()
def test_an_ablated_latent_leaves_the_error_term_as_it_was():
    """x is the reconstruction plus the error; only the latent's own part goes."""
    x = torch.randn(1, 5, D_IN, generator=torch.Generator().manual_seed(3))
    acts = SAE.encode(x)
    feature = int(acts[0, 0].argmax())
    error = x - SAE.decode(acts)
    without = acts.clone()
    without[..., feature] = 0
    changed = x + compiled([Ablate(feature)])[HOOK].change(x)
    torch.testing.assert_close(changed, SAE.decode(without) + error, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(changed, x)


@torch.no_grad()
def test_edits_that_ask_for_nothing_change_no_bit():
    x = torch.randn(2, 4, D_IN)
    assert compiled([Add(3, 0.0)], [Add(4, 0.0)]) != {}
    for row in ([Add(3, 0.0)], [Scale(3, 1.0)], [AddDirection(VECTOR, 0.0, HOOK)]):
        change = compiled(row, row)[HOOK].change(x)
        assert torch.equal(x + change, x)


@torch.no_grad()
def test_a_projection_leaves_nothing_along_its_direction():
    x = torch.randn(1, 4, D_IN)
    changed = x + compiled([ScaleDirection(VECTOR, 0.0, HOOK)])[HOOK].change(x)
    assert (changed @ VECTOR).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Add(D_SAE, 1.0), f"There is no latent {D_SAE} in the SAE at '{HOOK}'; it has latents 0 to {D_SAE - 1}."),
        (Ablate(-1), f"There is no latent -1 in the SAE at '{HOOK}'; it has latents 0 to {D_SAE - 1}."),
        (Add(1, float("nan")), "The dose of latent 1 is nan; give a finite number."),
        (Scale(1, float("inf")), "The dose of latent 1 is inf; give a finite number."),
        (
            Add(1, 1.0, "blocks.1.hook_resid_post"),
            "Add(feature=1, dose=1.0, hook='blocks.1.hook_resid_post') is at 'blocks.1.hook_resid_post', but the SAE's "
            f"hook point is {HOOK}; leave hook out, or give the SAE of that hook point.",
        ),
        (
            AddDirection(torch.ones(3), 1.0, HOOK),
            f"A direction has shape (3,); the activations need ({D_IN},), the model's width.",
        ),
        (
            AddDirection(torch.zeros(D_IN), 1.0, HOOK),
            "A direction is zero or not finite; give a vector that points somewhere.",
        ),
    ],
)
def test_wrong_edits_are_refused_in_one_sentence(edit, message):
    with pytest.raises(SteeringError) as error:
        compiled([edit])
    assert str(error.value) == message


def test_a_latent_is_not_edited_twice_in_a_row_but_in_two_rows():
    with pytest.raises(SteeringError, match=f"Latent 2 at '{HOOK}' is edited twice; give one edit for it."):
        compiled([Add(2, 1.0), Ablate(2)])
    compiled([Add(2, 1.0)], [Ablate(2)])


def test_an_edit_without_an_sae_says_what_is_missing():
    with pytest.raises(SteeringError, match="does not say its hook point and no SAE was given; give the edit's hook."):
        compile_rows([(Add(1, 1.0),)], {}, D_IN, "cpu")


def test_a_dose_of_a_latent_without_a_strength_is_refused():
    silent = {HOOK: Dictionary(SAE, torch.zeros(D_SAE))}
    with pytest.raises(SteeringError, match=f"Latent 3 at '{HOOK}' never fired where strengths were measured"):
        compile_rows([(Add(3, 1.0),)], silent, D_IN, "cpu")
    compile_rows([(Add(3, 0.0), Scale(4, 2.0), Ablate(5))], silent, D_IN, "cpu")


def test_an_sae_that_rescales_tokens_is_refused():
    sae = make_dictionary(D_IN).sae
    sae.cfg.normalize_activations = "layer_norm"
    with pytest.raises(SteeringError, match="rescales every token"):
        Dictionary(sae, torch.ones(D_SAE))
