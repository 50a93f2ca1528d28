"""Stopping and resuming: what SAE-Lens's runners lack to reach the same weights after an interruption.

1. SAE-Lens's ``ActivationsStore`` saves how many rows it has read, but not its buffer or the state of its shuffling, so
   a resumed run trains on other batches. :class:`ResumableActivationsStore` saves all three.
2. On Ctrl-C, SAE-Lens's runners raise immediately, possibly in the middle of an optimizer step. The runners of this
   package stop between two steps and save a complete checkpoint.
3. SAE-Lens saves periodic checkpoints before it counts the step, and a resumed run repeats those that were saved
   already. :func:`set_counts_right` corrects both.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from jaxtyping import Float, Int
from sae_lens import LanguageModelSAETrainingRunner
from sae_lens.training.activations_store import ActivationsStore
from safetensors.torch import load_file
from torch import Tensor

from sae_lens_maira.activations.block import Block
from sae_lens_maira.activations.provider import CachedActivations, CachedMultiHookActivations
from sae_lens_maira.data.study import TokenKind
from sae_lens_maira.errors import Interrupted
from sae_lens_maira.interruption import StopRequest, noticed_interruptions
from sae_lens_maira.training.checkpoints import seal

if TYPE_CHECKING:
    from sae_lens_maira.hooked import HookedVisionLanguageModel
    from sae_lens_maira.training.data import TrainingData

logger = logging.getLogger(__name__)

_ANSWER = "Stopping after this step; press Ctrl-C again to stop at once without saving."
_Batch = TypeVar("_Batch")


class ResumableActivationsStore(ActivationsStore):
    """SAE-Lens's store with a buffer that is saved in checkpoints, so that a resumed run sees the same batches.

    The buffer takes at most ``n_batches_in_buffer * context_size * d_in * 4`` bytes of each checkpoint (``d_in`` summed
    over hook points), plus one batch of rows.

    Args:
        store: SAE-Lens's own store, not read from yet; its settings are copied.
        data: what the run trains on.
        seed: seed of the shuffling.

    Attributes:
        stop_request: once a stop is requested, no further batch is served.
    """

    def __init__(self, store: ActivationsStore, data: TrainingData, seed: int) -> None:
        self.__dict__.update(store.__dict__)
        # The one that was taken over would count rows in the other store.
        self.iterable_sequences = self._iterate_tokenized_sequences()
        self.stop_request = StopRequest()
        self.provider = data.provider
        self._selection = data.selection
        self._kinds: Any = None if data.kinds is None else data.kinds.with_format("torch")
        self._n_rows = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._mixing: Tensor | None = None
        self._serving: Tensor | None = None

    def get_batch_tokens(
        self, batch_size: int | None = None, raise_at_epoch_end: bool = False, move_to_model_device: bool = True
    ) -> Int[Tensor, "batch context"]:
        """The next rows; ``raise_at_epoch_end`` is ignored.

        A batch that reaches the end of an epoch continues with the next one. SAE-Lens would drop the last rows of each
        epoch if they do not fill a batch, and those are the same rows in every epoch.
        """
        self._n_rows += batch_size or self.store_batch_size_prompts
        return super().get_batch_tokens(batch_size, False, move_to_model_device)

    @torch.no_grad()
    def selected_block(self) -> Block:
        """The selected tokens of the next batch of rows, with their activations at all hook points."""
        rows = self.get_batch_tokens()
        found = (
            {self.hook_name: self.get_activations(rows)}
            if self._hook_names is None
            else self.get_multi_hook_activations(rows)
        )
        model: HookedVisionLanguageModel = self.model  # pyright: ignore[reportAssignmentType]
        studies = rows[:, 0].cpu() - model.row_vocabulary.study_token(0)
        window = slice(*self.seqpos_slice)
        kinds = self._kinds[studies.tolist()]["kinds"][:, : self.context_size][:, window].to(torch.uint8)
        position = torch.arange(self.context_size)[window].expand_as(kinds)
        is_token = kinds != TokenKind.PAD
        activations = {name: values.to(self.device)[is_token.to(self.device)] for name, values in found.items()}
        block = Block(
            activations=activations,
            norms={name: values.float().norm(dim=-1).cpu() for name, values in activations.items()},
            token_ids=rows[:, window].cpu()[is_token],
            study_index=studies[:, None].expand_as(kinds)[is_token],
            position=position[is_token],
            kind=kinds[is_token],
        )
        return block.keep(self._selection.of(block))

    def get_filtered_llm_batch(self, raise_on_epoch_end: bool = False) -> Float[Tensor, "n_tokens d_in"]:
        """The selected activations of the next batch of rows; several hook points are concatenated along ``d_in``."""
        return torch.cat(list(self.selected_block().activations.values()), dim=1)

    def get_data_loader(self) -> Iterator[Tensor]:
        """Batches for training at one hook point."""
        provider = self.provider
        assert provider is None or isinstance(provider, CachedActivations)
        return self._until_stopped(self._mixed() if provider is None else provider)

    def get_multi_hook_data_loader(self) -> Iterator[dict[str, Tensor]]:
        """Batches for training at several hook points."""
        provider = self.provider
        assert provider is None or isinstance(provider, CachedMultiHookActivations)
        return self._until_stopped(self._split() if provider is None else provider)

    def _until_stopped(self, batches: Iterator[_Batch]) -> Iterator[_Batch]:
        while True:
            if self.stop_request.made:
                raise Interrupted("interrupted; train goes on with --resume")
            yield next(batches)

    def _split(self) -> Iterator[dict[str, Tensor]]:
        assert self._hook_names is not None
        assert self._hook_d_ins is not None
        widths = [self._hook_d_ins[name] for name in self._hook_names]
        for batch in self._mixed():
            yield dict(zip(self._hook_names, batch.split(widths, dim=1), strict=True))

    def _mixed(self) -> Iterator[Tensor]:
        """Batches mixed as SAE-Lens's ``mixing_buffer`` does.

        Fill the buffer, permute it, keep a share of it, serve the rest.
        """
        n_kept = int(self._buffer_size() * self.activations_mixing_fraction)
        while True:
            while self._serving is not None and len(self._serving) >= self.train_batch_size_tokens:
                batch, self._serving = self._serving.split(
                    [self.train_batch_size_tokens, len(self._serving) - self.train_batch_size_tokens]
                )
                yield batch
            fresh = self.get_filtered_llm_batch()
            self._mixing = fresh if self._mixing is None else torch.cat([self._mixing, fresh])
            if len(self._mixing) < self._buffer_size():
                continue
            if self.activations_mixing_fraction > 0:
                order = torch.randperm(len(self._mixing), generator=self._generator)
                self._mixing = self._mixing[order.to(self._mixing.device)]
            n_batches = max(1, (len(self._mixing) - n_kept) // self.train_batch_size_tokens)
            n_served = n_batches * self.train_batch_size_tokens
            self._serving, self._mixing = self._mixing[:n_served], self._mixing[n_served:]

    def state_dict(self) -> dict[str, Tensor]:
        if self.provider is not None:
            return self.provider.state_dict()
        buffers = {"mixing": self._mixing, "serving": self._serving}
        return {
            "n_rows": torch.tensor(self._n_rows),
            "generator_state": self._generator.get_state(),
            **{name: value.contiguous() for name, value in buffers.items() if value is not None},
        }

    def load(self, file_path: str) -> None:
        state = load_file(file_path)
        if self.provider is not None:
            self.provider.load_state_dict(state)
            return
        dataset: Any = self.dataset
        self._n_rows = int(state["n_rows"])
        for _ in range(self._n_rows % len(dataset)):
            next(self.iterable_sequences)
        self._generator.set_state(state["generator_state"])
        self._mixing, self._serving = (
            state[name].to(self.device) if name in state else None for name in ("mixing", "serving")
        )

    def _buffer_size(self) -> int:
        return self.n_batches_in_buffer * self.training_context_size


class ResumableRunner(LanguageModelSAETrainingRunner):
    """SAE-Lens's runner with a :class:`ResumableActivationsStore` and interruptions between steps.

    Args:
        cfg: SAE-Lens's configuration.
        model: the model to read; with a cache, only SAE-Lens's evaluations run it.
        data: what the run trains on.
        config_hash: hash of the run's configuration, which its checkpoints carry.
    """

    def __init__(self, cfg: Any, model: HookedVisionLanguageModel, data: TrainingData, config_hash: str = "") -> None:
        self._config_hash = config_hash
        torch.manual_seed(cfg.seed)  # SAE-Lens does not seed the initialization of SAEs
        super().__init__(cfg, override_dataset=data.rows, override_model=model)
        self.store = ResumableActivationsStore(self.activations_store, data, cfg.seed)
        self.activations_store = self.store
        self.evaluator.activations_store = self.store

    def save_checkpoint(self, checkpoint_path: Path | None) -> None:
        super().save_checkpoint(checkpoint_path)
        if checkpoint_path is not None:
            seal(checkpoint_path, self._config_hash)

    def run_trainer_with_interruption_handling(self, trainer: Any) -> Any:
        set_counts_right(trainer, self.cfg.train_batch_size_tokens)
        provider, scaler = self.store.provider, trainer.activation_scaler
        if (
            isinstance(provider, CachedActivations)
            and self.sae.cfg.normalize_activations == "expected_average_only_in"
            and scaler.scaling_factor is None
        ):
            # SAE-Lens would estimate it, which uses up batches.
            scaler.scaling_factor = provider.scaling_factor
        return fit_or_save(trainer, self.store)


def set_counts_right(trainer: Any, batch_size: int) -> None:
    """Set the counts that SAE-Lens does not restore: finished steps, and checkpoints that are still to be saved."""
    trainer.n_training_steps = trainer.n_training_samples // batch_size
    trainer.checkpoint_thresholds = [
        threshold for threshold in trainer.checkpoint_thresholds if threshold > trainer.n_training_samples
    ]


def fit_or_save(trainer: Any, store: ResumableActivationsStore) -> Any:
    """Train to the end, or until Ctrl-C, then save a complete checkpoint.

    Raises:
        Interrupted: Ctrl-C was pressed.
    """
    with noticed_interruptions(_ANSWER) as request:
        store.stop_request = request
        try:
            return trainer.fit()
        except Interrupted:
            trainer.save_checkpoint(checkpoint_name=str(trainer.n_training_samples))
            raise
