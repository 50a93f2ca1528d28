"""Values and gradients of the sparse pass equal the dense formula, for every differentiable output and input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_lens_maira.sae import pattern as pattern_module
from sae_lens_maira.sae.kernels import nested_reconstruction, selected_preactivations
from sae_lens_maira.sae.pattern import make_pattern
from sae_lens_maira.sae.selection import Encoder, ThresholdGuess, select_batch_topk, select_token_topk
from tests.sae.sae_reference import matryoshka_loss

NAMES = ("x", "W_enc", "b_enc", "W_dec", "b_dec")


def make_tensors(
    n_tokens: int, d_in: int, d_sae: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(n_tokens, d_in), (d_in, d_sae), (d_sae,), (d_sae, d_in), (d_in,)]
    return [torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def sparse_pass(
    tensors: list[Tensor],
    n_wanted: int,
    widths: list[int],
    weights: list[float],
    rescale: bool = False,
    per_token: bool = False,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    x, W_enc, b_enc, W_dec, b_dec = tensors
    norms = W_dec.norm(dim=-1) if rescale else None
    with torch.no_grad():
        encoder = Encoder(x - b_dec, W_enc.T, b_enc, norms)
        chosen = (
            select_token_topk(encoder, n_wanted)
            if per_token
            else select_batch_topk(encoder, n_wanted, ThresholdGuess())
        )
        pattern, order = make_pattern(chosen.tokens, chosen.latents, len(x), len(W_dec), widths)
    values = selected_preactivations(x, b_dec, W_enc, b_enc, encoder.x, chosen.preactivations[order], pattern)
    loss, reconstruction, losses, _ = nested_reconstruction(x, values, W_dec, b_dec, pattern, weights)
    activations = pattern.as_sparse(values if norms is None else values * norms[pattern.latents])
    return loss, reconstruction, activations.to_dense(), list(losses)


def assert_same(
    tensors: list[Tensor],
    n_wanted: int,
    widths: list[int],
    weights: list[float],
    tolerance: float = 1e-9,
    **options: bool,
) -> None:
    """Compare outputs, and the gradients of a mixture of all differentiable outputs."""
    generator = torch.Generator().manual_seed(7)
    x = tensors[0]
    on_reconstruction = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    on_activations = torch.randn(len(x), tensors[1].shape[1], generator=generator, dtype=x.dtype)
    results = []
    outputs_of = (
        matryoshka_loss(*tensors, n_wanted, widths, weights, **options),  # pyright: ignore[reportArgumentType, reportCallIssue]
        sparse_pass(tensors, n_wanted, widths, weights, **options),
    )
    for loss, reconstruction, activations, losses in outputs_of:
        mixed = 1.7 * loss + (reconstruction * on_reconstruction).sum() + (activations * on_activations).sum()
        grads = torch.autograd.grad(mixed, tensors, allow_unused=True)
        found = [torch.zeros(()) if grad is None else grad for grad in grads]
        results.append(([loss, reconstruction, activations, *losses], found))
    for name, expected, found in zip(NAMES, results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(
            found, expected.expand_as(found), rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
    for expected, found in zip(results[0][0], results[1][0], strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("per_token", [False, True])
def test_sparse_pass_equals_the_dense_formula(rescale: bool, per_token: bool) -> None:
    n_wanted = 3 if per_token else 30
    assert_same(make_tensors(10, 6, 24), n_wanted, [3, 8, 24], [1.0, 0.5, 2.0], rescale=rescale, per_token=per_token)


def test_sparse_pass_equals_the_dense_formula_in_fp32() -> None:
    tensors = make_tensors(64, 32, 128, dtype=torch.float32)
    with torch.no_grad():
        tensors[1] /= 32**0.5
        tensors[3] /= 32**0.5
    assert_same(tensors, 256, [8, 32, 128], [1.0, 1.0, 1.0], tolerance=2e-5, rescale=True)


def test_a_group_of_weight_zero_and_an_empty_group_have_exact_gradients() -> None:
    tensors = make_tensors(10, 6, 24)
    with torch.no_grad():
        tensors[2][3:8] = -100.0  # no latent of the second group fires
    assert_same(tensors, 30, [3, 8, 24], [1.0, 0.0, 1.0])


def test_k_larger_than_a_group_and_than_all_positive_activations() -> None:
    assert_same(make_tensors(6, 5, 12), 6 * 12, [1, 2, 12], [1.0, 1.0, 1.0], rescale=True)
    assert_same(make_tensors(6, 5, 12), 11, [1, 2, 12], [1.0, 1.0, 1.0], per_token=True)


def test_a_batch_where_nothing_fires() -> None:
    tensors = make_tensors(6, 5, 12)
    with torch.no_grad():
        tensors[2].fill_(-100.0)
    assert_same(tensors, 12, [4, 12], [1.0, 1.0])
    assert_same(tensors, 2, [4, 12], [1.0, 1.0], per_token=True)


def test_equal_activations_at_the_cut_are_taken_in_order() -> None:
    tensors = make_tensors(5, 4, 16)
    with torch.no_grad():
        tensors[1].zero_()
        tensors[2].copy_(torch.tensor([1.0, 2.0] * 8))
    for n_wanted in (1, 7, 40, 41, 63):
        assert_same(tensors, n_wanted, [4, 16], [1.0, 1.0])
    assert_same(tensors, 3, [4, 16], [1.0, 1.0], per_token=True)


def test_activations_of_exactly_zero_are_never_active() -> None:
    tensors = make_tensors(5, 4, 16)
    with torch.no_grad():
        tensors[1].zero_()
        tensors[2].zero_()
        tensors[2][3] = 1.0
    loss, _, activations, _ = sparse_pass(tensors, 40, [4, 16], [1.0, 1.0])
    assert int((activations != 0).sum()) == 5
    assert_same(tensors, 40, [4, 16], [1.0, 1.0])
    assert loss.requires_grad


def test_gradients_pass_gradcheck_for_a_fixed_selection() -> None:
    x, W_enc, b_enc, W_dec, b_dec = make_tensors(4, 3, 8)
    chosen = select_batch_topk(Encoder((x - b_dec).detach(), W_enc.detach().T, b_enc.detach()), 9, ThresholdGuess())
    pattern, order = make_pattern(chosen.tokens, chosen.latents, 4, 8, [2, 5, 8])

    def nested(x: Tensor, values: Tensor, W_dec: Tensor, b_dec: Tensor) -> tuple[Tensor, ...]:
        return nested_reconstruction(x, values, W_dec, b_dec, pattern, [1.0, 0.3, 2.0])[:2]

    values = chosen.preactivations[order].detach().requires_grad_()
    assert torch.autograd.gradcheck(nested, (x, values, W_dec, b_dec))


def test_errors_are_those_of_each_prefix() -> None:
    x, W_enc, b_enc, W_dec, b_dec = (t.detach() for t in make_tensors(300, 6, 24))
    chosen = select_batch_topk(Encoder(x - b_dec, W_enc.T, b_enc), 900, ThresholdGuess())
    pattern, order = make_pattern(chosen.tokens, chosen.latents, 300, 24, [3, 24])
    values = chosen.preactivations[order]
    _, reconstruction, _, errors = nested_reconstruction(x, values, W_dec, b_dec, pattern, [1.0, 1.0], keep_errors=True)
    dense = pattern.as_sparse(values).to_dense()
    assert errors is not None
    torch.testing.assert_close(errors[:, 0], dense[:, :3] @ W_dec[:3] + b_dec - x)
    torch.testing.assert_close(errors[:, 1] + x, reconstruction)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 7),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.integers(1, 60),
    st.integers(0, 10**6),
    st.booleans(),
    st.booleans(),
)
def test_any_shape_equals_the_dense_formula(
    n_tokens: int, d_in: int, sizes: list[int], n_wanted: int, seed: int, rescale: bool, coarse: bool
) -> None:
    widths = torch.tensor(sizes).cumsum(0).tolist()
    tensors = make_tensors(n_tokens, d_in, widths[-1], seed)
    if coarse:  # small whole numbers: many ties, many zeros
        tensors = [tensor.detach().round().requires_grad_() for tensor in tensors]
        rescale = False
    assert_same(tensors, n_wanted, widths, [1.0] * len(widths), rescale=rescale)


def test_blocks_of_columns_do_not_change_values_or_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pattern_module, "COLUMNS_PER_BLOCK", 4)
    assert_same(make_tensors(10, 11, 24), 30, [3, 8, 24], [1.0, 0.5, 2.0], rescale=True)
