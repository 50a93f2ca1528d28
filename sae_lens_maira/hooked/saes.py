"""SAEs spliced into the model, as SAE-Lens's ``HookedSAETransformer`` does it, error term included.

That class is a ``HookedTransformer``, which this model is not, but its methods for SAEs need only hook points and a
forward pass. So this model calls SAE-Lens's own methods, and imports SAE-Lens when the first of them is called.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from sae_lens_maira.data.source import StudySource
from sae_lens_maira.errors import HookPointError
from sae_lens_maira.hooked.bound import BoundModel
from sae_lens_maira.rows.policy import TokenPolicy
from sae_lens_maira.vlm import VisionLanguageModel

if TYPE_CHECKING:
    from sae_lens import SAE


class SpliceableModel(BoundModel):
    """Methods of ``HookedSAETransformer`` for attaching SAEs.

    While an SAE is attached, its reconstruction replaces the activations at the kept positions, and its own hook points
    appear below its hook point: ``blocks.15.hook_resid_post.hook_sae_acts_post``.
    """

    _acts_to_saes: dict[str, Any]
    _transcoder_output_hooks: dict[str, str]

    @property
    def acts_to_saes(self) -> dict[str, SAE[Any]]:
        """The attached SAEs by hook point."""
        return {name: wrapper.sae for name, wrapper in self._acts_to_saes.items()}

    def add_sae(
        self,
        sae: SAE[Any],
        use_error_term: bool | None = None,
        exclude_special_tokens: bool | list[int] = False,
    ) -> None:
        """Attach an SAE until :meth:`reset_saes`; it replaces an SAE at the same hook point.

        Args:
            sae: the SAE; its metadata names the hook point.
            use_error_term: add the reconstruction error, so that only interventions on latents have an effect; None
                takes the SAE's own setting.
            exclude_special_tokens: do not apply the SAE at these token ids; True for the tokenizer's special tokens.

        Raises:
            HookPointError: the model has no such hook point.
        """
        hook_name = sae.cfg.metadata.hook_name
        if hook_name not in self._acts_to_saes:
            self.check_hook_name(str(hook_name))
        _stock().add_sae(self, sae, use_error_term, exclude_special_tokens)

    def reset_saes(self, act_names: str | list[str] | None = None) -> None:
        """Detach the SAEs at some hook points; all if None."""
        _stock().reset_saes(self, act_names)

    @contextmanager
    def saes(
        self,
        saes: SAE[Any] | Sequence[SAE[Any]] = (),
        reset_saes_end: bool = True,
        use_error_term: bool | None = None,
        exclude_special_tokens: bool | list[int] = False,
    ) -> Iterator[Any]:
        """Attach SAEs for a ``with`` block, generation included; arguments as for :meth:`add_sae`."""
        own = list(saes) if isinstance(saes, Sequence) else [saes]
        with _stock().saes(self, own, reset_saes_end, use_error_term, exclude_special_tokens):
            yield self

    def run_with_saes(self, *args: Any, saes: Any = (), use_error_term: bool | None = None, **kwargs: Any) -> Any:
        """A forward pass with SAEs attached."""
        with self.saes(saes, use_error_term=use_error_term):
            return self(*args, **kwargs)

    def run_with_cache_with_saes(
        self, *args: Any, saes: Any = (), use_error_term: bool | None = None, **kwargs: Any
    ) -> tuple[Any, Any]:
        """``run_with_cache`` with SAEs attached, whose own hook points are cached too."""
        with self.saes(saes, use_error_term=use_error_term):
            return self.run_with_cache(*args, **kwargs)

    def run_with_hooks_with_saes(
        self, *args: Any, saes: Any = (), use_error_term: bool | None = None, **kwargs: Any
    ) -> Any:
        """``run_with_hooks`` with SAEs attached, whose own hook points can be hooked too."""
        with self.saes(saes, use_error_term=use_error_term):
            return self.run_with_hooks(*args, **kwargs)

    def _bind(self, vlm: VisionLanguageModel, envoy: Any, studies: StudySource, policy: TokenPolicy, name: str) -> None:
        self._acts_to_saes = {}
        self._transcoder_output_hooks = {}
        super()._bind(vlm, envoy, studies, policy, name)

    def _reset_sae(self, act_name: str, prev_wrapper: Any = None) -> None:
        _stock()._reset_sae(self, act_name, prev_wrapper)

    def _compute_exclusion_mask(self, tokens: Any, exclude_special_tokens: bool | list[int]) -> Any:
        return _stock()._compute_exclusion_mask(self, tokens, exclude_special_tokens)

    def _masked_saes(self, tokens: Any) -> AbstractContextManager[Any]:
        """For one forward pass, do not apply attached SAEs at the excluded tokens."""
        return _stock()._token_masks(self, tokens, {}) if self._acts_to_saes else nullcontext()

    def _refuse_masks(self) -> None:
        if any(wrapper.exclude_special_tokens is not False for wrapper in self._acts_to_saes.values()):
            raise HookPointError("exclude_special_tokens has no meaning while generating; attach the SAE without it.")


def _stock() -> Any:
    """SAE-Lens's class with the methods that are called on this model."""
    from sae_lens import HookedSAETransformer

    return HookedSAETransformer
