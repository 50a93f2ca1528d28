"""Residual norms, computed by hand, and what max_norm_multiple leaves out."""

import numpy as np
import pytest
import torch
from sae_lens.training.activations_store import ActivationsStore

from sae_lens_maira import phantom
from sae_lens_maira.activations.block import Block
from sae_lens_maira.activations.live import LiveActivations
from sae_lens_maira.activations.norms import measure_norms, summarize_norms
from sae_lens_maira.activations.selection import TokenSelection, with_norm_limits
from sae_lens_maira.data.study import TokenKind
from sae_lens_maira.hooked import HookedMaira2
from sae_lens_maira.training.data import TrainingData
from sae_lens_maira.training.store import ResumableActivationsStore
from tests.conftest import CHECKPOINT_PATH

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def hooked():
    return HookedMaira2.from_pretrained(CHECKPOINT_PATH, list(phantom.studies(6, seed=2)))


def test_norms_by_hand():
    activations = torch.tensor([[3.0, 4.0], [0.0, 5.0], [6.0, 8.0], [300.0, 400.0], [5.0, 0.0]])
    kinds = torch.tensor([TokenKind.FINDINGS, TokenKind.FINDINGS, TokenKind.END, TokenKind.END, TokenKind.FINDINGS])
    norms = summarize_norms(activations, kinds, HOOK, multiple=50)
    assert norms.median == 5.0
    assert norms.share_far == pytest.approx(1 / 5)
    assert norms.by_kind.keys() == {"findings", "end"}
    assert (norms.by_kind["findings"].median, norms.by_kind["findings"].share_far) == (5.0, 0.0)
    assert (norms.by_kind["end"].n_tokens, norms.by_kind["end"].largest) == (2, 500.0)
    assert norms.by_kind["end"].share_far == 0.5
    mean = activations.mean(0)
    spread = ((activations - mean) ** 2).sum(1).mean() ** 0.5
    assert norms.mean_to_std == pytest.approx((mean.norm() / spread).item())
    assert "findings" in norms.describe()


def test_measured_norms_are_those_of_the_cache(hooked):
    rows = hooked.rows(96)
    stream = LiveActivations(
        hooked, [HOOK, "blocks.0.hook_resid_pre"], indices=range(5), context_size=96, max_batch_tokens=400
    )
    norms = measure_norms(stream)
    tokens = torch.tensor(rows.dataset[:5]["tokens"])
    with torch.no_grad():
        _, cache = hooked.run_with_cache(tokens, names_filter=[HOOK], return_type=None)
    expected = cache[HOOK][torch.tensor(rows.dataset[:5]["kinds"]) != TokenKind.PAD].norm(dim=-1)
    assert norms[HOOK].median == pytest.approx(expected.median().item(), rel=1e-5)
    assert sum(kind.n_tokens for kind in norms[HOOK].by_kind.values()) == len(expected)
    assert norms.keys() == {HOOK, "blocks.0.hook_resid_pre"}
    assert measure_norms(stream, selection=TokenSelection(n_studies=0)) == {}


def test_a_norm_limit_is_a_multiple_of_the_median_of_the_selected_tokens(hooked):
    findings = TokenSelection(kinds=(TokenKind.FINDINGS,), n_studies=4, context_size=80)
    stream = LiveActivations(hooked, [HOOK])
    limited = with_norm_limits(findings, stream, [HOOK], 1.5)
    (block,) = stream
    own = (block.kind == TokenKind.FINDINGS) & (block.study_index < 4) & (block.position < 80)
    limit = 1.5 * np.median(block.activations[HOOK][own].norm(dim=-1).numpy())
    assert limited.norm_limits == {HOOK: pytest.approx(limit, rel=1e-6)}
    near = block.activations[HOOK].norm(dim=-1) <= limit
    assert torch.equal(limited.of(block), own & near)
    assert torch.equal(findings.of(block), own)


@pytest.mark.parametrize("kinds", [None, (TokenKind.FINDINGS, TokenKind.INDICATION)])
def test_activations_over_the_norm_limit_and_of_other_kinds_are_left_out_of_training(hooked, kinds):
    rows = hooked.rows(96).dataset
    plain = ActivationsStore(
        model=hooked,
        dataset=rows.select_columns(["tokens"]),
        streaming=False,
        hook_name=HOOK,
        hook_head_index=None,
        context_size=96,
        d_in=64,
        n_batches_in_buffer=2,
        total_training_tokens=6,
        store_batch_size_prompts=3,
        train_batch_size_tokens=8,
        prepend_bos=False,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
        exclude_special_tokens=torch.tensor([0]),
    )
    tokens = torch.tensor(rows[:3]["tokens"])
    _, cache = hooked.run_with_cache(tokens, names_filter=[HOOK], return_type=None)
    kind = torch.tensor(rows[:3]["kinds"])
    selected = kind != TokenKind.PAD if kinds is None else torch.isin(kind, torch.tensor(kinds))
    norms = cache[HOOK][selected].norm(dim=-1)
    selection = TokenSelection(kinds=kinds, norm_limits={HOOK: norms.median().item()})
    store = ResumableActivationsStore(plain, TrainingData(rows, rows, selection, rows.select_columns(["kinds"])), 0)
    kept = store.get_filtered_llm_batch()
    assert torch.equal(kept, cache[HOOK][selected][norms <= norms.median()])


def test_a_token_is_left_out_whose_norm_is_too_large_at_any_of_several_hook_points():
    """Four tokens: within both limits, over the first, over the second, exactly at both."""
    norms = {"first": torch.tensor([1.0, 3.0, 1.0, 2.0]), "second": torch.tensor([1.0, 1.0, 6.0, 5.0])}
    block = Block(
        activations={name: torch.zeros(4, 1) for name in norms},
        norms=norms,
        token_ids=torch.zeros(4, dtype=torch.long),
        study_index=torch.zeros(4, dtype=torch.long),
        position=torch.arange(4),
        kind=torch.zeros(4, dtype=torch.uint8),
    )
    selection = TokenSelection(norm_limits={"first": 2.0, "second": 5.0})
    assert selection.of(block).tolist() == [True, False, False, True]
