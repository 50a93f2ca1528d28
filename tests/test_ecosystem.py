"""Stock SAE-Lens, sae-dashboard and nnsight on HookedMaira2, unmodified."""

from typing import Any

import pytest
import torch

from sae_lens_maira.hooked import HookedMaira2
from sae_lens_maira.maira2 import Maira2ForConditionalGeneration
from tests.plain_maira2 import REFERENCE_CHECKPOINT, PlainBatch, phantom_studies, plain_activations, raw_hook

HOOK = "blocks.2.hook_resid_post"
CONTEXT_SIZE = 48
D_IN = 64


@pytest.fixture(scope="module")
def studies():
    return phantom_studies()


@pytest.fixture(scope="module")
def plain():
    return Maira2ForConditionalGeneration.from_pretrained(REFERENCE_CHECKPOINT, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def model(studies):
    return HookedMaira2.from_pretrained(REFERENCE_CHECKPOINT, studies, dtype=torch.float32)


@pytest.fixture
def dataset(model, tmp_path):
    return model.rows(CONTEXT_SIZE, cache_path=tmp_path, show_progress=False).dataset


def make_sae(d_sae) -> Any:
    """Weights are drawn by the caller."""
    from sae_lens import SAE
    from sae_lens.saes.standard_sae import StandardSAEConfig

    return SAE.from_dict(
        {
            **StandardSAEConfig(d_in=D_IN, d_sae=d_sae).to_dict(),
            "architecture": "standard",
            "dtype": "float32",
            "device": "cpu",
            "metadata": {
                "hook_name": HOOK,
                "hook_head_index": None,
                "model_name": "maira-2",
                "context_size": CONTEXT_SIZE,
                "prepend_bos": False,
            },
        }
    )


def identity_sae(scale=1.0):
    """relu(x) - relu(-x), times a number."""
    sae = make_sae(2 * D_IN)
    identity = torch.eye(D_IN)
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([identity, -identity], dim=1))
        sae.W_dec.copy_(torch.cat([identity, -identity], dim=0) * scale)
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    return sae


def store_of(model, sae, dataset, **kwargs):
    from sae_lens import ActivationsStore

    settings = {"store_batch_size_prompts": 2, "n_batches_in_buffer": 4, "train_batch_size_tokens": 64}
    return ActivationsStore.from_sae(model, sae, dataset, streaming=False, **{**settings, **kwargs})


@pytest.mark.filterwarnings("ignore:The training dataset contains fewer samples")
def test_the_activations_store_yields_the_plain_models_activations(model, dataset, plain, studies):
    pads = torch.tensor([model.tokenizer.pad_token_id])
    store = store_of(model, identity_sae(), dataset)
    store.exclude_special_tokens = pads
    found = torch.cat([store.get_filtered_llm_batch(), store.get_filtered_llm_batch()])
    expected = []
    for pair in (studies[:2], studies[2:]):  # the store's batches
        batch = PlainBatch.of(model.processor, pair)
        with torch.no_grad():
            full = plain_activations(plain, batch.inputs, HOOK)
        expected += [full[row, positions[:CONTEXT_SIZE]] for row, positions in enumerate(batch.kept)]
    assert torch.equal(found, torch.cat(expected))
    assert len(found) == int((torch.as_tensor(dataset["tokens"][:]) != pads).sum())


@pytest.mark.filterwarnings("ignore:The training dataset contains fewer samples", "ignore:All samples in the training")
def test_batches_of_the_activations_store_are_made_of_the_rows_activations(model, dataset):
    """The store shuffles; each of its vectors is the activation of a row's token."""
    store = store_of(model, identity_sae(), dataset, store_batch_size_prompts=4)
    store.exclude_special_tokens = torch.tensor([model.tokenizer.pad_token_id])
    tokens = torch.as_tensor(dataset["tokens"][:])
    with torch.no_grad():
        known = model.run_with_cache(tokens, names_filter=HOOK)[1][HOOK][tokens != model.tokenizer.pad_token_id]
    batch = next(iter(store))
    assert batch.shape == (64, D_IN)
    distances = torch.cdist(batch, known, compute_mode="donot_use_mm_for_euclid_dist")
    assert distances.min(dim=1).values.max() == 0
    assert len(distances.argmin(dim=1).unique()) > 32  # drawn from four buffered batches, so few are repeated


@pytest.mark.filterwarnings("ignore:The training dataset contains fewer samples")
def test_run_evals_finds_an_identity_perfect_and_a_zero_as_bad_as_ablation(model, dataset, plain, studies):
    from sae_lens.evals import EvalConfig, run_evals
    from sae_lens.training.activation_scaler import ActivationScaler

    config = EvalConfig(
        batch_size_prompts=4,
        n_eval_reconstruction_batches=1,
        n_eval_sparsity_variance_batches=1,
        compute_kl=True,
        compute_ce_loss=True,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
    )
    vocabulary = model.row_vocabulary
    ignored = [model.tokenizer.pad_token_id, *range(vocabulary.d_vocab, vocabulary.study_token(len(studies)))]
    found = {}
    for scale in (1.0, 0.0):
        sae = identity_sae(scale)
        store = store_of(model, sae, dataset)
        metrics, _ = run_evals(sae, store, model, ActivationScaler(), config, exclude_special_tokens=ignored)
        found[scale] = metrics
    loss = found[1.0]["model_performance_preservation"]
    assert loss["ce_loss_with_sae"] == pytest.approx(loss["ce_loss_without_sae"], abs=1e-6)
    assert loss["ce_loss_score"] == pytest.approx(1.0, abs=1e-4)
    assert found[1.0]["model_behavior_preservation"]["kl_div_with_sae"] == pytest.approx(0.0, abs=1e-6)
    assert found[1.0]["reconstruction_quality"]["explained_variance"] == pytest.approx(1.0, abs=1e-5)

    # SAE-Lens assigns a loss to the previous token, so tokens before an ignored one count too; here they have no loss.
    tokens = torch.as_tensor(dataset["tokens"][:])
    batch = PlainBatch.of(model.processor, studies)
    counted = ~torch.isin(tokens, torch.tensor(ignored))[:, :-1]
    zeroed = torch.zeros_like(batch.inputs["input_ids"], dtype=torch.bool)
    for row, positions in enumerate(batch.kept):
        for column, position in enumerate(positions[:CONTEXT_SIZE]):
            zeroed[row, position] = bool(tokens[row, column] not in ignored)
    with torch.no_grad(), raw_hook(plain, HOOK, lambda value: value.masked_fill(zeroed[..., None], 0.0)):
        log_probabilities = plain(**batch.inputs).logits.log_softmax(-1)
    losses = torch.zeros(counted.shape)
    for row, positions in enumerate(batch.kept):
        for column, position in enumerate(positions[1:CONTEXT_SIZE]):
            token = batch.inputs["input_ids"][row, position]
            if token != model.processor.image_token_id:
                losses[row, column] = -log_probabilities[row, position - 1, token]
    expected = losses[counted].mean().item()
    assert found[0.0]["model_performance_preservation"]["ce_loss_with_sae"] == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(loss["ce_loss_without_sae"], rel=1e-3)


def test_sae_dashboard_makes_pages_of_rows_as_they_are(model, dataset, tmp_path):
    from sae_dashboard.data_writing_fns import save_feature_centric_vis
    from sae_dashboard.sae_vis_data import SaeVisConfig
    from sae_dashboard.sae_vis_runner import SaeVisRunner

    torch.manual_seed(0)
    sae = make_sae(8)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.normal_()
    tokens = torch.as_tensor(dataset["tokens"][:])
    with torch.no_grad():
        activations = model.run_with_cache(tokens, names_filter=HOOK)[1][HOOK]
        sae.fold_W_dec_norm()
        features = sae.encode(activations)
    config = SaeVisConfig(
        hook_point=HOOK,
        features=list(range(8)),
        minibatch_size_features=8,
        minibatch_size_tokens=2,
        ignore_tokens={model.tokenizer.pad_token_id},
    )
    data = SaeVisRunner(config).run(encoder=sae, model=model, tokens=tokens)
    kept = tokens != model.tokenizer.pad_token_id
    feature = int((features * kept[..., None]).amax(dim=(0, 1)).argmax())
    sequences = data.feature_data_dict[feature].sequence_data.seq_group_data[0].seq_data
    strongest = sequences[0]
    assert max(strongest.feat_acts) == pytest.approx(features[kept][:, feature].max().item(), abs=2e-3)
    page = tmp_path / "page.html"
    save_feature_centric_vis(data, page)
    text = page.read_text()
    assert "UNK" not in text
    assert "▁" not in text


@torch.no_grad()
def test_an_nnsight_experiment_starts_from_a_study_in_three_lines(model, plain, studies):
    tokens = model.to_tokens(studies[3])
    with model.nnsight.trace(**model.full_inputs(tokens).model_inputs):
        mlp = model.nnsight.model.language_model.layers[1].mlp.output.save()
    inputs = PlainBatch.of(model.processor, studies[3:]).inputs
    assert torch.equal(mlp, plain_activations(plain, inputs, "blocks.1.hook_mlp_out"))
