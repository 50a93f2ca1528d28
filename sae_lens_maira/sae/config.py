"""Settings of the Matryoshka variant: SAE-Lens's, plus what dictionary_learning's trainer has and SAE-Lens lacks."""

from dataclasses import dataclass, field
from typing import Any, Literal

from sae_lens.saes.matryoshka_batchtopk_sae import MatryoshkaBatchTopKTrainingSAEConfig
from typing_extensions import override

from sae_lens_maira.errors import ConfigError
from sae_lens_maira.sae.prefixes import check_widths, widths_from_fractions

ARCHITECTURE = "maira_matryoshka"


@dataclass
class MairaMatryoshkaTrainingSAEConfig(MatryoshkaBatchTopKTrainingSAEConfig):
    """Configuration of the ``maira_matryoshka`` architecture; saved for inference as SAE-Lens's ``jumprelu``.

    Inherited and unchanged: ``d_in``, ``d_sae``, ``k`` (mean active latents per token), ``matryoshka_widths``
    (cumulative widths), ``use_matryoshka_aux_loss`` (one auxiliary loss per group instead of one for all),
    ``aux_loss_coefficient``, ``rescale_acts_by_decoder_norm``, ``apply_b_dec_to_input``, ``normalize_activations``,
    ``topk_threshold_lr`` (weight of one step's smallest activation in the running threshold).

    Args:
        group_fractions (list[float]): Share of the dictionary that each group holds, summing to 1; an alternative to
            ``matryoshka_widths``. Group sizes are rounded down as in dictionary_learning, and the last
            group takes the rest.
        group_weights (list[float]): Weight of each prefix's loss; empty for 1 each, as in SAE-Lens.
        prefixes (str): "fixed" trains the prefixes of the groups at every step; "sampled" draws new widths at each
            step, with a density proportional to ``width ** -1.5``, and always adds the whole dictionary.
        n_sampled_prefixes (int): Prefixes per step if they are sampled, including the whole dictionary.
        selection (str): "batch" keeps the ``k * n_tokens`` largest activations of a batch, "token" the k largest of
            each token.
        k_start (float | None): k at the first step, moving linearly to ``k``; None for ``k`` throughout.
        k_anneal_steps (int): Steps from ``k_start`` to ``k``.
        aux_loss (str): "sae_lens" as in SAE-Lens's top-k SAEs (scaled down while few latents are dead);
            "dictionary_learning" uses rectified activations and divides by the residual's variance.
        threshold_init (str): "zero" starts the running threshold at 0, as SAE-Lens does; "first" at the first step's
            smallest activation, as dictionary_learning does.
        threshold_start_step (int): Steps before the running threshold starts.
        decoder_init_norm (float | None): Norm of the decoder's rows at the start. With SAE-Lens's default, 0.1, most
            latents of a nested dictionary die early (figures in benchmarks/README.md).
        unit_norm_decoder (bool): Keep decoder rows at norm 1 after each step and remove the gradient's parallel part.
        b_dec_init (str): "zeros", or "geometric_median" of the first training batch.
        center_steps (int): Steps over which the activations' mean is measured; it is subtracted from the input, added
            to the output, and folded into the biases when the SAE is saved for inference. 0 for none.
        kernels (str): "sparse", "dense", or "auto", the faster one at the density k / d_sae. Results are the same.
        use_sparse_activations (bool): Whether the sparse kernels return a step's activations as sparse tensors
            (SAE-Lens's default is False). False makes dense ones, which takes time and memory.
        fused_optimizer (bool): Use PyTorch's fused kernel in the Adam optimizer of this SAE. Results are the same.
    """

    group_fractions: list[float] = field(default_factory=list)
    group_weights: list[float] = field(default_factory=list)
    prefixes: Literal["fixed", "sampled"] = "fixed"
    n_sampled_prefixes: int = 5
    selection: Literal["batch", "token"] = "batch"
    k_start: float | None = None
    k_anneal_steps: int = 0
    aux_loss: Literal["sae_lens", "dictionary_learning"] = "sae_lens"
    threshold_init: Literal["zero", "first"] = "first"
    threshold_start_step: int = 0
    decoder_init_norm: float | None = 1.0
    unit_norm_decoder: bool = False
    b_dec_init: Literal["zeros", "geometric_median"] = "zeros"
    center_steps: int = 0
    use_sparse_activations: bool = True
    kernels: Literal["auto", "sparse", "dense"] = "auto"
    fused_optimizer: bool = True

    @override
    @classmethod
    def architecture(cls) -> str:
        return ARCHITECTURE

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_choices()
        self._check_groups()
        self._check_numbers()

    def widths(self) -> list[int]:
        """Cumulative widths of the prefixes, from ``matryoshka_widths`` or ``group_fractions``, up to ``d_sae``."""
        if self.matryoshka_widths:
            widths = list(self.matryoshka_widths)
            return widths if widths[-1] == self.d_sae else [*widths, self.d_sae]
        return widths_from_fractions(self.group_fractions, self.d_sae)

    def weights(self) -> list[float]:
        """Weight of each prefix's loss."""
        return list(self.group_weights) or [1.0] * len(self.widths())

    def k_at(self, step: int) -> float:
        """k at a training step."""
        if self.k_start is None or step >= self.k_anneal_steps:
            return self.k
        return self.k_start + (self.k - self.k_start) * step / self.k_anneal_steps

    @classmethod
    def like_dictionary_learning(
        cls, d_in: int, d_sae: int, k: int, group_fractions: list[float], **settings: Any
    ) -> "MairaMatryoshkaTrainingSAEConfig":
        """The settings with which a step equals dictionary_learning's ``MatryoshkaBatchTopKTrainer`` at its defaults.

        That trainer weighs each prefix by 1 / n_groups and then takes the mean over prefixes. Learning rate and warm-up
        belong to SAE-Lens's runner; its ``dead_feature_window`` counts steps where dictionary_learning counts tokens.
        """
        n_groups = len(group_fractions)
        defaults: dict[str, Any] = {
            "group_weights": [1 / n_groups**2] * n_groups,
            "aux_loss": "dictionary_learning",
            "aux_loss_coefficient": 1 / 32,
            "rescale_acts_by_decoder_norm": False,
            "unit_norm_decoder": True,
            "b_dec_init": "geometric_median",
            "threshold_init": "first",
            "threshold_start_step": 1001,
            "topk_threshold_lr": 0.001,
        }
        return cls(d_in=d_in, d_sae=d_sae, k=k, group_fractions=group_fractions, **{**defaults, **settings})

    def _check_choices(self) -> None:
        choices = {
            "prefixes": ("fixed", "sampled"),
            "selection": ("batch", "token"),
            "aux_loss": ("sae_lens", "dictionary_learning"),
            "threshold_init": ("zero", "first"),
            "b_dec_init": ("zeros", "geometric_median"),
            "kernels": ("auto", "sparse", "dense"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}.")
        if self.normalize_activations in ("layer_norm", "constant_norm_rescale"):
            raise ConfigError(
                f"normalize_activations={self.normalize_activations!r} rescales each token, which nested losses do not "
                "support (nor do SAE-Lens's): use none, expected_average_only_in or covariance_whitening."
            )

    def _check_groups(self) -> None:
        if not self.matryoshka_widths and not self.group_fractions:
            raise ConfigError("Give the groups, either as matryoshka_widths or as group_fractions.")
        widths = self.widths()
        check_widths(widths, self.d_sae)
        if self.group_fractions and widths != widths_from_fractions(self.group_fractions, self.d_sae):
            raise ConfigError(
                f"matryoshka_widths {widths} and group_fractions {self.group_fractions} disagree: give one of them."
            )
        if self.group_weights and len(self.group_weights) != len(widths):
            raise ConfigError(f"{len(self.group_weights)} group_weights were given for {len(widths)} groups.")
        if any(weight < 0 for weight in self.group_weights):
            raise ConfigError("group_weights must not be negative.")
        if self.prefixes == "sampled" and self.group_weights:
            raise ConfigError("group_weights belong to fixed prefixes; sampled ones weigh 1 each.")
        if self.prefixes == "sampled" and not 1 <= self.n_sampled_prefixes <= self.d_sae:
            raise ConfigError(f"n_sampled_prefixes must be between 1 and d_sae, not {self.n_sampled_prefixes}.")

    def _check_numbers(self) -> None:
        for name, k in (("k", self.k), ("k_start", self.k_start)):
            if k is not None and not 0 < k <= self.d_sae:
                raise ConfigError(f"{name} must be above 0 and at most d_sae ({self.d_sae}), not {k}.")
        if self.selection == "token" and self.k != int(self.k):
            raise ConfigError(f"k must be a whole number if selection is per token, not {self.k}.")
        if (self.k_start is None) != (self.k_anneal_steps == 0):
            raise ConfigError("k_start and k_anneal_steps go together: give both or neither.")
        for name in ("k_anneal_steps", "threshold_start_step", "center_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative.")
        if self.unit_norm_decoder and self.decoder_init_norm != 1.0:
            raise ConfigError("unit_norm_decoder needs decoder_init_norm=1.0.")
