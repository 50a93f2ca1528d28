"""The ``maira_matryoshka`` training SAE: SAE-Lens's Matryoshka BatchTopK class with sparse kernels and more settings.

One training step, in the order of ``training_forward_pass``:

1. center the input, choose this step's k and prefixes;
2. encode, select and decode all prefixes, sparse or dense (``passes.py``), with the same results;
3. add the auxiliary loss of the dead latents;
4. move the running threshold, and on logging steps measure each prefix and group.

SAE-Lens does the rest: the trainer, the scaling of activations, checkpoints, and saving for inference as ``jumprelu``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from sae_lens.saes.matryoshka_batchtopk_sae import MatryoshkaBatchTopKTrainingSAE
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor
from typing_extensions import override

from sae_lens_maira.sae.activation import OrderedBatchTopK, OrderedTopK
from sae_lens_maira.sae.auxiliary import auxiliary_loss
from sae_lens_maira.sae.config import MairaMatryoshkaTrainingSAEConfig
from sae_lens_maira.sae.optimizer import latent_major, link_optimizer, normalize_rows_, without_parallel_gradient
from sae_lens_maira.sae.passes import Parameters, Pass, Prefixes, dense_pass, sparse_pass
from sae_lens_maira.sae.prefixes import sample_prefixes, split_into_groups
from sae_lens_maira.sae.selection import Encoder, Selection, ThresholdGuess, select_batch_topk, select_token_topk
from sae_lens_maira.sae.statistics import count_firings, geometric_median, step_metrics

SPARSE_BELOW_DENSITY = {"cpu": 1 / 10, "cuda": 1 / 64}
"""Share of active latents below which the sparse kernels are faster: measured on a CPU, a cautious guess for CUDA."""


class MairaMatryoshkaTrainingSAE(MatryoshkaBatchTopKTrainingSAE):
    """Matryoshka SAE whose training step costs little more than one encoder product.

    In the sparse pass, ``TrainStepOutput.feature_acts`` and ``hidden_pre`` hold the active latents only, as a sparse
    COO tensor, or as a dense one with ``use_sparse_activations=False``. Hooks on the SAE's hook points need dense
    tensors, so the dense pass runs if any is attached. ``torch.compile`` compiles the dense pass only.
    """

    cfg: MairaMatryoshkaTrainingSAEConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    activation_mean: Float[Tensor, " d_in"]

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
            normalize_rows_(self.W_dec.data)
            self.W_enc.data = self.W_dec.data.T.clone()
        # The gradient of W_enc comes latent by latent; storing the transpose makes it, and Adam's state, contiguous.
        self.W_enc.data = latent_major(self.W_enc.data)

    @override
    def get_activation_fn(self) -> Callable[[Tensor], Tensor]:
        if self.cfg.selection == "token":
            return OrderedTopK(int(self.cfg.k))
        return OrderedBatchTopK(self.cfg.k)

    @override
    def process_sae_in(self, sae_in: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        return super().process_sae_in(sae_in if not self.cfg.center_steps else sae_in - self.activation_mean)

    @override
    def decode(self, feature_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        decoded = super().decode(feature_acts)
        return decoded + self.activation_mean if self.cfg.center_steps else decoded

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        link_optimizer(self, fused=self.cfg.fused_optimizer, unit_norm_decoder=self.cfg.unit_norm_decoder)
        k = self.cfg.k_at(step_input.n_training_steps)
        if self._is_sparse(k):
            return self._sparse_step(step_input, k)  # pyright: ignore[reportCallIssue]
        return self._dense_step(step_input, k)

    # torch.compile cannot trace sparse tensors whose number of values is unknown.
    @torch.compiler.disable
    def _sparse_step(self, step_input: TrainStepInput, k: float) -> TrainStepOutput:
        x = self._start_step(step_input)
        prefixes, parameters = self._prefixes(), self._parameters_of_step()

        def select(encoder: Encoder) -> Selection:
            if self.cfg.selection == "token":
                return select_token_topk(encoder, int(k))
            return select_batch_topk(encoder, int(k * x.shape[0]), self._threshold_guess)

        result = sparse_pass(x, parameters, self._norms(), select, prefixes, self._needs_errors(step_input))
        return self._finish_step(step_input, x, k, prefixes, parameters, result)

    def _dense_step(self, step_input: TrainStepInput, k: float) -> TrainStepOutput:
        x = self._start_step(step_input)
        prefixes, parameters = self._prefixes(), self._parameters_of_step()
        assert isinstance(self.activation_fn, OrderedBatchTopK | OrderedTopK)
        self.activation_fn.k = k  # pyright: ignore[reportAttributeAccessIssue]
        # SAE-Lens's method centers its input again.
        activations, hidden_pre = self.encode_with_hidden_pre(self._uncentered(x))
        # SAE-Lens has multiplied by these, even if a unit-norm decoder makes them 1 up to rounding.
        norms = self.W_dec.norm(dim=-1) if self.cfg.rescale_acts_by_decoder_norm else None
        keep_errors = self._needs_errors(step_input)
        result = dense_pass(x, parameters, norms, activations, hidden_pre, prefixes, keep_errors, self.hook_sae_recons)
        return self._finish_step(step_input, x, k, prefixes, parameters, result)

    def _start_step(self, step_input: TrainStepInput) -> Float[Tensor, "n_tokens d_in"]:
        """The step's input, centered; in the first steps the mean and the decoder's bias are set from it."""
        x, step = step_input.sae_in.to(self.dtype), step_input.n_training_steps
        with torch.no_grad():
            if step < self.cfg.center_steps:
                self.activation_mean += (x.mean(0) - self.activation_mean) / (step + 1)
            if self.cfg.center_steps:
                x = x - self.activation_mean
            if step == 0 and self.cfg.b_dec_init == "geometric_median" and not self.b_dec.any():
                self.b_dec.data = geometric_median(x.detach())
        return x

    def _finish_step(
        self,
        step_input: TrainStepInput,
        x: Float[Tensor, "n_tokens d_in"],
        k: float,
        prefixes: Prefixes,
        parameters: Parameters,
        result: Pass,
    ) -> TrainStepOutput:
        """Add the auxiliary loss, move the threshold and measure."""
        names = self._prefix_names(prefixes)
        *inner, mse_loss = result.prefix_losses.unbind()
        losses = {"mse_loss": mse_loss}
        losses |= {f"inner_mse_loss_{name}": loss for name, loss in zip(names[:-1], inner, strict=True)}
        auxiliary = self._auxiliary_loss(x, step_input.dead_neuron_mask, parameters, prefixes, result)
        losses["auxiliary_reconstruction_loss"] = auxiliary
        output = TrainStepOutput(
            sae_in=step_input.sae_in,
            sae_out=self._uncentered(result.reconstruction),
            feature_acts=self._sparse_or_dense(result.activations),
            hidden_pre=self._sparse_or_dense(result.hidden_pre),
            loss=result.loss + auxiliary,
            losses=losses,
        )
        if step_input.n_training_steps >= self.cfg.threshold_start_step:
            self.update_topk_threshold(result.activations)
        output.metrics["topk_threshold"] = self.topk_threshold
        if step_input.is_logging_step:
            output.metrics |= self._metrics(x, k, names, step_input.dead_neuron_mask, result)
        return output

    @override
    @torch.no_grad()
    def update_topk_threshold(self, acts_topk: Float[Tensor, "n_tokens d_sae"]) -> None:
        values = acts_topk.coalesce().values() if acts_topk.is_sparse else acts_topk
        if self.cfg.threshold_init == "first" and self.topk_threshold == 0:
            positive = values[values > 0]
            if positive.numel():
                self.topk_threshold = positive.min().to(self.topk_threshold.dtype)
            return
        super().update_topk_threshold(values)

    def _is_sparse(self, k: float) -> bool:
        hooked = any(hook._forward_hooks or hook._backward_hooks for hook in self.hook_dict.values())
        supported = self.dtype in (torch.float32, torch.float64) and not hooked
        if self.cfg.kernels == "auto":
            limit = SPARSE_BELOW_DENSITY.get(self.device.type, 0.0)
            return supported and k / self.cfg.d_sae < limit
        return supported and self.cfg.kernels == "sparse"

    def _prefixes(self) -> Prefixes:
        """This step's prefixes."""
        if self.cfg.prefixes == "sampled":
            widths = sample_prefixes(self.cfg.n_sampled_prefixes, self.cfg.d_sae)
            return Prefixes(widths, [1.0] * len(widths))
        return Prefixes(self.cfg.matryoshka_widths, self.cfg.weights())

    def _prefix_names(self, prefixes: Prefixes) -> list[str]:
        """Names for the log. Sampled widths differ from step to step, so those prefixes are numbered."""
        if self.cfg.prefixes == "sampled":
            return [f"sampled_{index}" for index in range(len(prefixes.widths))]
        return [str(width) for width in prefixes.widths]

    def _parameters_of_step(self) -> Parameters:
        # The projection is one node, so that every use of the decoder passes through it.
        W_dec = without_parallel_gradient(self.W_dec) if self.cfg.unit_norm_decoder else self.W_dec
        return Parameters(self.W_enc, self.b_enc, W_dec, self.b_dec, self.cfg.apply_b_dec_to_input)

    def _needs_errors(self, step_input: TrainStepInput) -> bool:
        return self.cfg.use_matryoshka_aux_loss and _any_dead(step_input.dead_neuron_mask)

    def _norms(self) -> Float[Tensor, " d_sae"] | None:
        """Decoder norms that activations are multiplied by for the selection; None if they are 1."""
        if not self.cfg.rescale_acts_by_decoder_norm or self.cfg.unit_norm_decoder:
            return None
        return self.W_dec.norm(dim=-1)

    def _uncentered(self, x: Float[Tensor, "n_tokens d_in"]) -> Float[Tensor, "n_tokens d_in"]:
        return x + self.activation_mean if self.cfg.center_steps else x

    def _sparse_or_dense(self, activations: Float[Tensor, "n_tokens d_sae"]) -> Float[Tensor, "n_tokens d_sae"]:
        keep = self.cfg.use_sparse_activations or not activations.is_sparse
        return activations if keep else activations.to_dense()

    def _auxiliary_loss(
        self,
        x: Float[Tensor, "n_tokens d_in"],
        dead: Bool[Tensor, " d_sae"] | None,
        parameters: Parameters,
        prefixes: Prefixes,
        result: Pass,
    ) -> Float[Tensor, ""]:
        if dead is not None and self.cfg.aux_loss == "dictionary_learning":
            # dictionary_learning counts a step's firings before it decides which latents are dead, SAE-Lens afterwards.
            dead = dead & (count_firings(result.activations.detach()) == 0)
        if dead is None or not _any_dead(dead) or self.cfg.aux_loss_coefficient == 0:
            return x.new_zeros(())
        with torch.no_grad():
            norms = self._norms()
        if result.prefix_errors is None:
            widths, residuals = [self.cfg.d_sae], [x - result.reconstruction.detach()]
        else:
            widths, residuals = prefixes.widths, list((-result.prefix_errors).unbind(1))
        encoder_input = parameters.encoder_input(x)
        with torch.autocast(x.device.type, enabled=False):
            losses = [
                auxiliary_loss(encoder_input, parameters, norms, group, residual.to(x.dtype), self.cfg.aux_loss)
                for group, residual in zip(split_into_groups(dead, widths), residuals, strict=True)
            ]
        return self.cfg.aux_loss_coefficient * torch.stack(losses).sum()

    @torch.no_grad()
    def _metrics(
        self,
        x: Float[Tensor, "n_tokens d_in"],
        k: float,
        names: list[str],
        dead: Bool[Tensor, " d_sae"] | None,
        result: Pass,
    ) -> dict[str, Any]:
        counts, losses = count_firings(result.activations.detach()), result.prefix_losses.detach()
        widths = self.cfg.matryoshka_widths
        return {"k": k, **step_metrics(self._uncentered(x), losses, names, counts, dead, widths)}

    @override
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        super().fold_activation_norm_scaling_factor(scaling_factor)
        if self.cfg.center_steps:
            self.activation_mean /= scaling_factor

    @override
    @torch.no_grad()
    def fold_activation_whitening(
        self,
        mean: Float[Tensor, " d_in"],
        whitening_matrix: Float[Tensor, "d_in d_in"],
        unwhitening_matrix: Float[Tensor, "d_in d_in"],
    ) -> None:
        if self.cfg.center_steps:
            # Whitened activations are already centered, so the rest of the mean is folded into the biases first.
            self._fold_mean(self._parameters)
            self.activation_mean.zero_()
        super().fold_activation_whitening(mean, whitening_matrix, unwhitening_matrix)

    def _fold_mean(self, tensors: dict[str, Any]) -> None:
        """Fold the mean into the biases of a state dict; exact, because encoder and decoder are affine."""
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
            state_dict["W_enc"] = latent_major(state_dict["W_enc"])


def _any_dead(dead: Bool[Tensor, " d_sae"] | None) -> bool:
    return dead is not None and bool(dead.any())
