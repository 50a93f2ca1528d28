"""The `maira_matryoshka` training SAE: SAE-Lens's Matryoshka BatchTopK class with sparse kernels and more settings.

One training step, in the order of `training_forward_pass`:

1. centre the input, choose this step's k and prefixes;
2. encode, select and decode all prefixes, sparse (`_sparse_pass`) or dense (`_dense_pass`), with the same results;
3. add the auxiliary loss of the dead latents;
4. move the running threshold, and on logging steps measure each prefix and group.

SAE-Lens does the rest: the trainer, the scaling of activations, checkpoints, and saving for inference as `jumprelu`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from sae_lens.saes.matryoshka_batchtopk_sae import MatryoshkaBatchTopKTrainingSAE
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor
from typing_extensions import override

from sae_lens_maira.sae.activation import OrderedBatchTopK, OrderedTopK
from sae_lens_maira.sae.auxiliary import auxiliary_loss
from sae_lens_maira.sae.config import MairaMatryoshkaTrainingSAEConfig
from sae_lens_maira.sae.firing import CountableActivations
from sae_lens_maira.sae.kernels import nested_reconstruction, selected_preactivations
from sae_lens_maira.sae.optimizer import link_optimizer, normalise_rows_, without_parallel_gradient
from sae_lens_maira.sae.pattern import make_pattern
from sae_lens_maira.sae.prefixes import sample_prefixes
from sae_lens_maira.sae.selection import Encoder, ThresholdGuess, select_batch_topk, select_token_topk
from sae_lens_maira.sae.statistics import geometric_median, step_metrics

SPARSE_BELOW_DENSITY = {"cpu": 1 / 10, "cuda": 1 / 64}
"""Share of active latents under which the sparse kernels are faster: measured on a CPU, a cautious guess for CUDA."""


@dataclass
class _Pass:
    """What the sparse and the dense pass both give."""

    loss: Float[Tensor, ""]
    reconstruction: Float[Tensor, "n_tokens d_in"]
    prefix_losses: list[Tensor]
    activations: Tensor
    """(n_tokens, d_sae), sparse COO or dense, as compared by the top-k."""
    hidden_pre: Tensor
    prefix_errors: list[Tensor] | None
    """`R_p - x` of each prefix, detached; only where the auxiliary loss is per group."""


class MairaMatryoshkaTrainingSAE(MatryoshkaBatchTopKTrainingSAE):
    """Matryoshka SAE whose training step costs little more than one encoder product.

    In the sparse pass, `TrainStepOutput.feature_acts` and `hidden_pre` hold the active latents only, as a sparse COO
    tensor. Hooks on the SAE's hook points need dense tensors, so with any attached the dense pass runs.
    """

    cfg: MairaMatryoshkaTrainingSAEConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    activation_mean: Tensor

    def __init__(self, cfg: MairaMatryoshkaTrainingSAEConfig, use_error_term: bool = False) -> None:
        cfg.matryoshka_widths = cfg.widths()
        cfg.metadata.matryoshka_widths = list(cfg.matryoshka_widths)
        super().__init__(cfg, use_error_term)
        self._threshold_guess = ThresholdGuess()
        if cfg.center_steps > 0:
            self.register_buffer("activation_mean", torch.zeros_like(self.b_dec.data))

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        if self.cfg.unit_norm_decoder:
            normalise_rows_(self.W_dec.data)
            self.W_enc.data = self.W_dec.data.T.clone()
        # The gradient of W_enc comes latent by latent; storing the transpose makes it, and Adam's state, contiguous.
        self.W_enc.data = _latent_major(self.W_enc.data)

    @override
    def get_activation_fn(self) -> Callable[[Tensor], Tensor]:
        if self.cfg.selection == "token":
            return OrderedTopK(int(self.cfg.k))
        return OrderedBatchTopK(self.cfg.k)

    @override
    def process_sae_in(self, sae_in: Tensor) -> Tensor:
        return super().process_sae_in(sae_in if not self.cfg.center_steps else sae_in - self.activation_mean)

    @override
    def decode(self, feature_acts: Tensor) -> Tensor:
        decoded = super().decode(feature_acts)
        return decoded + self.activation_mean if self.cfg.center_steps else decoded

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        cfg, step = self.cfg, step_input.n_training_steps
        link_optimizer(self, fused=cfg.fused_optimizer, unit_norm_decoder=cfg.unit_norm_decoder)
        x = self._start_step(step_input.sae_in, step)
        k = cfg.k_at(step)
        if cfg.prefixes == "sampled":
            widths = sample_prefixes(cfg.n_sampled_prefixes, cfg.d_sae)
            weights = [1.0] * len(widths)
        else:
            widths, weights = cfg.matryoshka_widths, cfg.weights()
        needs_errors = cfg.use_matryoshka_aux_loss and _any_dead(step_input.dead_neuron_mask)
        # The projection is one node, so that every use of the decoder passes through it.
        W_dec = without_parallel_gradient(self.W_dec) if cfg.unit_norm_decoder else self.W_dec
        if self._is_sparse(k):
            run = cast("Callable[..., _Pass]", torch.compiler.disable(self._sparse_pass))
            result = run(x, W_dec, k, widths, weights, needs_errors)
        else:
            result = self._dense_pass(x, W_dec, k, widths, weights, needs_errors)

        losses = {"mse_loss": result.prefix_losses[-1]}
        names = _prefix_names(cfg.prefixes, widths)
        inner = zip(names[:-1], result.prefix_losses[:-1], strict=True)
        losses |= {f"inner_mse_loss_{name}": loss for name, loss in inner}
        auxiliary = self._auxiliary_loss(x, W_dec, step_input.dead_neuron_mask, result, widths)
        losses["auxiliary_reconstruction_loss"] = auxiliary
        offset = self.activation_mean if cfg.center_steps else 0.0
        output = TrainStepOutput(
            sae_in=step_input.sae_in,
            sae_out=result.reconstruction + offset,
            feature_acts=_countable(result.activations),
            hidden_pre=result.hidden_pre,
            loss=result.loss + auxiliary,
            losses=losses,
        )
        if step >= cfg.threshold_start_step:
            self.update_topk_threshold(result.activations)
        output.metrics["topk_threshold"] = self.topk_threshold
        if step_input.is_logging_step:
            output.metrics |= self._metrics(x, k, result, names, step_input.dead_neuron_mask)
        return output

    @override
    @torch.no_grad()
    def update_topk_threshold(self, acts_topk: Tensor) -> None:
        values = acts_topk.coalesce().values() if acts_topk.is_sparse else acts_topk
        if self.cfg.threshold_init == "first" and self.topk_threshold == 0:
            positive = values[values > 0]
            if positive.numel():
                self.topk_threshold = positive.min().to(self.topk_threshold.dtype)
            return
        super().update_topk_threshold(values)

    def _start_step(self, sae_in: Tensor, step: int) -> Tensor:
        """The step's input, centred; in the first steps the mean and the decoder's bias are set from it."""
        x = sae_in.to(self.dtype)
        with torch.no_grad():
            if step < self.cfg.center_steps:
                self.activation_mean += (x.mean(0) - self.activation_mean) / (step + 1)
            if self.cfg.center_steps:
                x = x - self.activation_mean
            if step == 0 and self.cfg.b_dec_init == "geometric_median" and not self.b_dec.any():
                self.b_dec.data = geometric_median(x.detach())
        return x

    def _is_sparse(self, k: float) -> bool:
        hooked = any(hook._forward_hooks or hook._backward_hooks for hook in self.hook_dict.values())
        supported = self.dtype in (torch.float32, torch.float64) and not hooked
        if self.cfg.kernels == "auto":
            limit = SPARSE_BELOW_DENSITY.get(self.device.type, 0.0)
            return supported and k / self.cfg.d_sae < limit
        return supported and self.cfg.kernels == "sparse"

    def _norms(self) -> Tensor | None:
        """Decoder norms that activations are multiplied by for the selection; None where they are 1."""
        if not self.cfg.rescale_acts_by_decoder_norm or self.cfg.unit_norm_decoder:
            return None
        return self.W_dec.norm(dim=-1)

    def _sparse_pass(
        self, x: Tensor, W_dec: Tensor, k: float, widths: list[int], weights: list[float], needs_errors: bool
    ) -> _Pass:
        b_dec = self.b_dec if self.cfg.apply_b_dec_to_input else None
        norms = self._norms()
        with torch.no_grad():
            centred = x if b_dec is None else x - b_dec
            encoder = Encoder(centred, self.W_enc.T, self.b_enc, norms)
            if self.cfg.selection == "token":
                selection = select_token_topk(encoder, int(k))
            else:
                selection = select_batch_topk(encoder, int(k * x.shape[0]), self._threshold_guess)
            pattern, order = make_pattern(selection.tokens, selection.latents, x.shape[0], self.cfg.d_sae, widths)
        # Autocast chose the precision of the encoder's product above; what follows is sparse and stays in fp32.
        with torch.autocast(x.device.type, enabled=False):
            chosen = selection.preactivations[order]
            values = selected_preactivations(x, b_dec, self.W_enc, self.b_enc, centred, chosen, pattern)
            loss, reconstruction, prefix_losses, errors = nested_reconstruction(
                x, values, W_dec, self.b_dec, pattern, weights, needs_errors
            )
            activations = pattern.as_sparse(values if norms is None else values * norms[pattern.latents])
        return _Pass(
            loss=loss,
            reconstruction=reconstruction,
            prefix_losses=list(prefix_losses.unbind()),
            activations=activations,
            hidden_pre=activations,
            prefix_errors=None if errors is None else list(errors.unbind(1)),
        )

    def _dense_pass(
        self, x: Tensor, W_dec: Tensor, k: float, widths: list[int], weights: list[float], needs_errors: bool
    ) -> _Pass:
        assert isinstance(self.activation_fn, OrderedBatchTopK | OrderedTopK)
        self.activation_fn.k = k  # pyright: ignore[reportAttributeAccessIssue]
        # SAE-Lens's method centres its input itself.
        raw = x + self.activation_mean if self.cfg.center_steps else x
        activations, hidden_pre = self.encode_with_hidden_pre(raw)
        decoded = activations
        if self.cfg.rescale_acts_by_decoder_norm:
            norms = self.W_dec.norm(dim=-1)
            decoded = activations * torch.where(norms > 0, 1 / norms, 0.0)
        reconstruction, start = self.b_dec, 0
        loss, losses, errors = x.new_zeros(()), [], []
        for width, weight in zip(widths, weights, strict=True):
            reconstruction = decoded[:, start:width] @ W_dec[start:width] + reconstruction
            if width == self.cfg.d_sae:
                reconstruction = self.hook_sae_recons(reconstruction)
            error = reconstruction - x
            losses.append(error.pow(2).sum(-1).mean())
            loss = loss + weight * losses[-1]
            if needs_errors:
                errors.append(error.detach())
            start = width
        return _Pass(
            loss=loss,
            reconstruction=reconstruction,
            prefix_losses=losses,
            activations=activations,
            hidden_pre=hidden_pre,
            prefix_errors=errors or None,
        )

    def _auxiliary_loss(
        self, x: Tensor, W_dec: Tensor, dead: Tensor | None, result: _Pass, widths: list[int]
    ) -> Tensor:
        if dead is not None and self.cfg.aux_loss == "dictionary_learning":
            # That trainer counts what fires in a step before it asks which latents are dead, SAE-Lens's after.
            dead = dead & ~_fired(result.activations)
        if dead is None or not _any_dead(dead) or self.cfg.aux_loss_coefficient == 0:
            return x.new_zeros(())
        with torch.no_grad():
            norms = self._norms()
        encoder_in = x - self.b_dec if self.cfg.apply_b_dec_to_input else x
        if result.prefix_errors is None:
            pairs = [(dead, x - result.reconstruction.detach())]
        else:
            bounds = zip([0, *widths[:-1]], widths, strict=True)
            index = torch.arange(self.cfg.d_sae, device=dead.device)
            groups = [dead & (index >= start) & (index < stop) for start, stop in bounds]
            pairs = [(group, -error) for group, error in zip(groups, result.prefix_errors, strict=True)]
        with torch.autocast(x.device.type, enabled=False):
            losses = [
                auxiliary_loss(
                    encoder_in, self.W_enc, self.b_enc, W_dec, norms, mask, residual.to(x.dtype), self.cfg.aux_loss
                )
                for mask, residual in pairs
            ]
        return self.cfg.aux_loss_coefficient * torch.stack(losses).sum()

    @torch.no_grad()
    def _metrics(self, x: Tensor, k: float, result: _Pass, names: list[str], dead: Tensor | None) -> dict[str, Any]:
        activations = result.activations.detach()
        if activations.is_sparse:
            latents = activations.coalesce().indices()[1]
            counts = torch.bincount(latents, minlength=self.cfg.d_sae).float()
        else:
            counts = (activations > 0).sum(0).float()
        raw = x + self.activation_mean if self.cfg.center_steps else x
        losses = torch.stack([loss.detach() for loss in result.prefix_losses])
        return {"k": k, **step_metrics(raw, losses, names, counts, dead, self.cfg.matryoshka_widths)}

    @override
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        super().fold_activation_norm_scaling_factor(scaling_factor)
        if self.cfg.center_steps:
            self.activation_mean /= scaling_factor

    @override
    @torch.no_grad()
    def fold_activation_whitening(self, mean: Tensor, whitening_matrix: Tensor, unwhitening_matrix: Tensor) -> None:
        if self.cfg.center_steps:
            # Whitened activations are centred already, so what is left of the mean moves into the biases first.
            self._fold_mean(self._parameters)
            self.activation_mean.zero_()
        super().fold_activation_whitening(mean, whitening_matrix, unwhitening_matrix)

    def _fold_mean(self, tensors: dict[str, Any]) -> None:
        """Fold the mean into the biases of a state dict; exact, the encoder and decoder are affine."""
        mean = self.activation_mean
        if not self.cfg.apply_b_dec_to_input:
            tensors["b_enc"].data = tensors["b_enc"].data - mean @ tensors["W_enc"].data
        tensors["b_dec"].data = tensors["b_dec"].data + mean

    @override
    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving(state_dict)
        state_dict["W_enc"] = state_dict["W_enc"].contiguous()

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        if self.cfg.center_steps:
            self._fold_mean(state_dict)
            del state_dict["activation_mean"]
        super().process_state_dict_for_saving_inference(state_dict)

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        if "W_enc" in state_dict:
            state_dict["W_enc"] = _latent_major(state_dict["W_enc"])


def _latent_major(W_enc: Tensor) -> Tensor:
    """The same (d_in, d_sae) matrix, stored latent by latent."""
    return W_enc.T.contiguous().T


def _prefix_names(prefixes: str, widths: list[int]) -> list[str]:
    """Names for the log. Sampled widths differ from step to step, so those prefixes are numbered."""
    return [str(width) if prefixes == "fixed" else f"sampled_{index}" for index, width in enumerate(widths)]


def _countable(activations: Tensor) -> Tensor:
    return CountableActivations(activations) if activations.is_sparse else activations


def _fired(activations: Tensor) -> Tensor:
    """(d_sae,) mask of the latents that are active anywhere in the batch."""
    if not activations.is_sparse:
        return (activations > 0).any(0)
    mask = torch.zeros(activations.shape[1], dtype=torch.bool, device=activations.device)
    mask[activations.detach().coalesce().indices()[1]] = True
    return mask


def _any_dead(dead: Tensor | None) -> bool:
    return dead is not None and bool(dead.any())
