"""Stopping and going on: the pieces that SAE-Lens's runner lacks to resume to the same weights.

1. SAE-Lens's `ActivationsStore` remembers how many rows it has read, not what is still in its buffer or the state of
   its shuffling; a resumed run therefore trains on other batches. :class:`ResumableActivationsStore` saves both.
2. On Ctrl-C the runner raises wherever it is, possibly half way through an optimiser step, and saves the position in
   the data but not the weights. :class:`ResumableRunner` stops between two steps and saves a whole checkpoint.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from sae_lens import LanguageModelSAETrainingRunner
from sae_lens.constants import RUNNER_CFG_FILENAME
from sae_lens.training.activations_store import ActivationsStore
from safetensors.torch import load_file
from torch import Tensor

from sae_lens_maira.errors import Interrupted
from sae_lens_maira.interruption import StopRequest, noticed_interruptions

if TYPE_CHECKING:
    from sae_lens_maira.activations.provider import CachedActivations

logger = logging.getLogger(__name__)


class ResumableActivationsStore(ActivationsStore):
    """SAE-Lens's store with a buffer that is saved in checkpoints, so that a resumed run sees the same batches.

    The buffer takes ``n_batches_in_buffer * context_size * d_in * 4`` bytes of each checkpoint at the most, plus one
    batch of rows.
    """

    stop_request: StopRequest = StopRequest()
    norm_limit: float | None = None
    """Leave out activations with a larger norm."""
    provider: CachedActivations | None = None
    """Serve these in place of the model's."""

    def seed(self, seed: int) -> None:
        """Start the shuffling's own random numbers."""
        self._generator = torch.Generator().manual_seed(seed)
        self._mixing: Tensor | None = None
        self._serving: Tensor | None = None

    def get_filtered_llm_batch(self, raise_on_epoch_end: bool = False) -> Float[Tensor, "n_tokens d_in"]:
        activations = super().get_filtered_llm_batch(raise_on_epoch_end)
        if self.norm_limit is None:
            return activations
        return activations[activations.norm(dim=-1) <= self.norm_limit]

    def get_data_loader(self) -> Iterator[Tensor]:
        """Batches for training, mixed as SAE-Lens's ``mixing_buffer`` does.

        Fill the buffer, permute it, keep a share of it, serve the rest.
        """
        if self.provider is not None:
            yield from self.provider
        n_kept = int(self._buffer_size() * self.activations_mixing_fraction)
        loader = self._iterate_filtered_activations()
        while True:
            while self._serving is not None and len(self._serving) >= self.train_batch_size_tokens:
                batch, self._serving = self._serving.split(
                    [self.train_batch_size_tokens, len(self._serving) - self.train_batch_size_tokens]
                )
                yield batch
            fresh = next(loader)
            self._mixing = fresh if self._mixing is None else torch.cat([self._mixing, fresh])
            if len(self._mixing) < self._buffer_size():
                continue
            if self.activations_mixing_fraction > 0:
                order = torch.randperm(len(self._mixing), generator=self._generator)
                self._mixing = self._mixing[order.to(self._mixing.device)]
            n_batches = max(1, (len(self._mixing) - n_kept) // self.train_batch_size_tokens)
            n_served = n_batches * self.train_batch_size_tokens
            self._serving, self._mixing = self._mixing[:n_served], self._mixing[n_served:]

    def __next__(self) -> Float[Tensor, "n_tokens d_in"]:
        if self.stop_request.made:
            raise Interrupted("interrupted; train goes on with --resume")
        return super().__next__()

    def state_dict(self) -> dict[str, Tensor]:
        if self.provider is not None:
            return self.provider.state_dict()
        buffers = {"mixing": self._mixing, "serving": self._serving}
        return {
            **super().state_dict(),
            "generator_state": self._generator.get_state(),
            **{name: value.contiguous() for name, value in buffers.items() if value is not None},
        }

    def load(self, file_path: str) -> None:
        state = load_file(file_path)
        if self.provider is not None:
            self.provider.load_state_dict(state)
            return
        super().load(file_path)
        self._generator.set_state(state["generator_state"])
        self._mixing, self._serving = (
            state[name].to(self.device) if name in state else None for name in ("mixing", "serving")
        )

    def _buffer_size(self) -> int:
        return self.n_batches_in_buffer * self.training_context_size


class ResumableRunner(LanguageModelSAETrainingRunner):
    """SAE-Lens's runner with a :class:`ResumableActivationsStore` and interruptions between steps.

    Args:
        cfg, override_dataset, override_model: as for SAE-Lens's.
        norm_limit: leave out activations with a larger norm.
        provider: cached activations to train on; the model and dataset then only serve SAE-Lens's evaluations.
    """

    def __init__(
        self,
        cfg: Any,
        override_dataset: Any,
        override_model: Any,
        norm_limit: float | None = None,
        provider: CachedActivations | None = None,
    ) -> None:
        torch.manual_seed(cfg.seed)  # SAE-Lens initialises the SAE from wherever the random numbers are
        super().__init__(cfg, override_dataset=override_dataset, override_model=override_model)
        store = ResumableActivationsStore.from_config(self.model, cfg, override_dataset=override_dataset)
        assert isinstance(store, ResumableActivationsStore)
        store.norm_limit = norm_limit
        store.provider = provider
        store.seed(cfg.seed)
        self.activations_store = store
        self.evaluator.activations_store = store

    def run_trainer_with_interruption_handling(self, trainer: Any) -> Any:
        # SAE-Lens saves periodic checkpoints before it counts the step, and starts its list of them anew.
        trainer.n_training_steps = trainer.n_training_samples // self.cfg.train_batch_size_tokens
        trainer.checkpoint_thresholds = [
            threshold for threshold in trainer.checkpoint_thresholds if threshold > trainer.n_training_samples
        ]
        store = self.activations_store
        assert isinstance(store, ResumableActivationsStore)
        if (
            store.provider is not None
            and self.sae.cfg.normalize_activations == "expected_average_only_in"
            and trainer.activation_scaler.scaling_factor is None
        ):
            # SAE-Lens would use up batches for an estimate.
            trainer.activation_scaler.scaling_factor = store.provider.scaling_factor

        answer = "Stopping after this step; press Ctrl-C again to stop at once without saving."
        with noticed_interruptions(answer) as store.stop_request:
            try:
                return trainer.fit()
            except Interrupted:
                trainer.save_checkpoint(checkpoint_name=str(trainer.n_training_samples))
                raise


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the most training samples that was written to its end."""
    checkpoints = [path for path in folder.glob("*") if path.name.isdigit() and _is_whole(path)]
    return max(checkpoints, key=lambda path: int(path.name), default=None)


def _is_whole(checkpoint: Path) -> bool:
    """SAE-Lens writes the runner's configuration last."""
    try:
        json.loads((checkpoint / RUNNER_CFG_FILENAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
