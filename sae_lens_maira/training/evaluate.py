"""Scores of an SAE on held-out rows: SAE-Lens's ``run_evals``, and the share of dead features."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from sae_lens.evals import EvalConfig, run_evals
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.activations_store import ActivationsStore

if TYPE_CHECKING:
    from datasets import Dataset
    from sae_lens import SAE

    from sae_lens_maira.hooked import HookedVisionLanguageModel


@dataclass(frozen=True)
class SaeScores:
    """Scores on held-out rows.

    Args:
        explained_variance: 1 - residual variance / variance.
        l0: mean number of active features per token.
        dead_share: share of features that never fired on the evaluated tokens.
        ce_loss: the model's loss on the rows' tokens.
        ce_loss_with_sae: the loss when the SAE's reconstruction replaces the activations.
        ce_loss_with_ablation: the loss when zeros replace the activations.
        n_tokens: number of tokens that were evaluated.
    """

    explained_variance: float
    l0: float
    dead_share: float
    ce_loss: float
    ce_loss_with_sae: float
    ce_loss_with_ablation: float
    n_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """The scores as plain values."""
        return asdict(self)

    def describe(self) -> str:
        """One line for people."""
        return (
            f"explained variance {self.explained_variance:.3f} at L0 {self.l0:.1f}, {self.dead_share:.1%} of features "
            f"did not fire on {self.n_tokens} tokens; loss {self.ce_loss:.3f}, with the SAE "
            f"{self.ce_loss_with_sae:.3f}, with zeros {self.ce_loss_with_ablation:.3f}"
        )


@torch.no_grad()
def evaluate_sae(
    sae: SAE[Any],
    model: HookedVisionLanguageModel,
    dataset: Dataset,
    *,
    n_batches: int,
    batch_size: int,
    exclude_special_tokens: list[int],
    seqpos_slice: tuple[int | None, ...] = (None,),
) -> SaeScores:
    """Score an SAE.

    Args:
        sae: an inference SAE whose metadata gives its hook point and context size.
        model: the model on whose activations the SAE was trained.
        dataset: rows, evaluated in their order.
        n_batches: number of batches to run.
        batch_size: rows per batch.
        exclude_special_tokens: token ids that are left out.
        seqpos_slice: positions in a row that are evaluated, as in SAE-Lens.
    """
    store = ActivationsStore(
        model=model,
        dataset=dataset,
        streaming=False,
        hook_name=sae.cfg.metadata.hook_name,
        hook_head_index=None,
        context_size=sae.cfg.metadata.context_size,
        d_in=sae.cfg.d_in,
        n_batches_in_buffer=1,
        total_training_tokens=len(dataset),
        store_batch_size_prompts=batch_size,
        train_batch_size_tokens=batch_size,
        prepend_bos=False,
        normalize_activations="none",
        device=torch.device(sae.device),
        dtype="float32",
        seqpos_slice=seqpos_slice,
    )
    n_batches = max(1, min(n_batches, len(dataset) // batch_size))
    config = EvalConfig(
        batch_size_prompts=batch_size,
        n_eval_reconstruction_batches=n_batches,
        n_eval_sparsity_variance_batches=n_batches,
        compute_ce_loss=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=True,
    )
    metrics, features = run_evals(
        sae, store, model, ActivationScaler(), config, exclude_special_tokens=exclude_special_tokens
    )
    density = torch.tensor(features["feature_density"])
    tokens = torch.as_tensor(dataset[: n_batches * batch_size]["tokens"])
    n_tokens = int((~torch.isin(tokens, torch.tensor(exclude_special_tokens))).sum())
    loss = metrics["model_performance_preservation"]
    return SaeScores(
        explained_variance=metrics["reconstruction_quality"]["explained_variance"],
        l0=metrics["sparsity"]["l0"],
        dead_share=(density == 0).float().mean().item(),
        ce_loss=loss["ce_loss_without_sae"],
        ce_loss_with_sae=loss["ce_loss_with_sae"],
        ce_loss_with_ablation=loss["ce_loss_with_ablation"],
        n_tokens=n_tokens,
    )
