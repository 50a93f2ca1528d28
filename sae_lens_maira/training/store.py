"""An ``ActivationsStore`` that can be saved and stopped at any batch, and that leaves out what cannot be used.

SAE-Lens's own store saves how many rows it has read, but not its buffer or the state of its shuffling, so a resumed run
trains on other batches. :class:`ResumableActivationsStore` saves all three.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from jaxtyping import Float, Int
from sae_lens.training.activations_store import ActivationsStore
from safetensors.torch import load_file
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_maira.activations.block import Block
from sae_lens_maira.activations.provider import CachedActivations, CachedMultiHookActivations
from sae_lens_maira.data.study import TokenKind
from sae_lens_maira.errors import Interrupted, StudyImageError
from sae_lens_maira.interruption import StopRequest
from sae_lens_maira.rows.reader import StudyReader
from sae_lens_maira.training.skipped import SkippedStudies

if TYPE_CHECKING:
    from sae_lens_maira.hooked import HookedVisionLanguageModel
    from sae_lens_maira.training.data import TrainingData

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
        stop_request: once a stop is requested, no further batch is served and no further row is read.
        skipped: studies whose images cannot be used, which are left out.
    """

    def __init__(self, store: ActivationsStore, data: TrainingData, seed: int) -> None:
        self.__dict__.update(store.__dict__)
        # The one that was taken over would count rows in the other store.
        self.iterable_sequences = self._iterate_tokenized_sequences()
        self.stop_request = StopRequest()
        self.provider = data.provider
        self.skipped = SkippedStudies(data.selection.n_studies or len(data.rows), data.max_skipped_share)
        self._selection = data.selection
        self._kinds: Any = None if data.kinds is None else data.kinds.with_format("torch")
        self._n_rows = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._mixing: Tensor | None = None
        self._serving: Tensor | None = None

    def get_batch_tokens(
        self, batch_size: int | None = None, raise_at_epoch_end: bool = False, move_to_model_device: bool = True
    ) -> Int[Tensor, "batch context"]:
        """The next rows that can be used, for SAE-Lens's evaluations; ``raise_at_epoch_end`` is ignored.

        A batch that reaches the end of an epoch continues with the next one. SAE-Lens would drop the last rows of each
        epoch if they do not fill a batch, and those are the same rows in every epoch.
        """
        while True:
            rows = self._next_rows(batch_size, move_to_model_device)
            for index in self._studies(rows).tolist():
                try:
                    self._reader.images(index)
                except StudyImageError as error:
                    self.skipped.add(error)
            rows = self._without_skipped(rows)
            if len(rows):
                return rows
            self._check_stop()

    @torch.no_grad()
    def selected_block(self) -> Block:
        """The selected tokens of the next batch of rows, with their activations at all hook points."""
        rows, found = self._read(self._next_rows())
        while not len(rows):
            self._check_stop()
            rows, found = self._read(self._next_rows())
        studies = self._studies(rows)
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

    def _next_rows(
        self, batch_size: int | None = None, move_to_model_device: bool = True
    ) -> Int[Tensor, "batch context"]:
        self._n_rows += batch_size or self.store_batch_size_prompts
        return super().get_batch_tokens(batch_size, False, move_to_model_device)

    def _read(
        self, rows: Int[Tensor, "batch context"]
    ) -> tuple[Int[Tensor, "used context"], dict[str, Float[Tensor, "used window d_in"]]]:
        """Those rows whose images can be used, and their activations at all hook points."""
        rows = self._without_skipped(rows)
        while len(rows):
            try:
                if self._hook_names is None:
                    return rows, {self.hook_name: self.get_activations(rows)}
                return rows, self.get_multi_hook_activations(rows)
            except StudyImageError as error:
                self.skipped.add(error)
                rows = self._without_skipped(rows)
        return rows, {}

    @property
    def _reader(self) -> StudyReader:
        model: HookedVisionLanguageModel = self.model  # pyright: ignore[reportAssignmentType]
        return model.reader

    def _studies(self, rows: Int[Tensor, "batch context"]) -> Int[Tensor, " batch"]:
        """Index of each row's study."""
        model: HookedVisionLanguageModel = self.model  # pyright: ignore[reportAssignmentType]
        return rows[:, 0].cpu() - model.row_vocabulary.study_token(0)

    def _without_skipped(self, rows: Int[Tensor, "batch context"]) -> Int[Tensor, "used context"]:
        return rows[self.skipped.keep(self._studies(rows)).to(rows.device)]

    def _check_stop(self) -> None:
        """Stop between two batches of rows, where the store's state is whole.

        Raises:
            Interrupted: a stop was requested.
            TooManySkipped: too many studies cannot be used.
        """
        if self.stop_request.made:
            raise Interrupted("interrupted; train goes on with --resume")
        self.skipped.check()

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
            self._check_stop()
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
            self._fill()
            assert self._mixing is not None
            if self.activations_mixing_fraction > 0:
                order = torch.randperm(len(self._mixing), generator=self._generator)
                self._mixing = self._mixing[order.to(self._mixing.device)]
            n_batches = max(1, (len(self._mixing) - n_kept) // self.train_batch_size_tokens)
            n_served = n_batches * self.train_batch_size_tokens
            self._serving, self._mixing = self._mixing[:n_served], self._mixing[n_served:]

    def _fill(self) -> None:
        """Read rows until the buffer is full; what was read before a stop is kept."""
        parts = [] if self._mixing is None else [self._mixing]
        n_tokens = sum(map(len, parts))
        bar = tqdm(total=self._buffer_size(), desc="filling the buffer", unit="token", delay=2, leave=False)
        bar.update(n_tokens)
        try:
            while True:
                self._check_stop()
                parts.append(self.get_filtered_llm_batch())
                n_tokens += len(parts[-1])
                bar.update(len(parts[-1]))
                if n_tokens >= self._buffer_size():
                    return
        finally:
            bar.close()
            self._mixing = torch.cat(parts) if parts else None

    def _buffer_size(self) -> int:
        return self.n_batches_in_buffer * self.training_context_size

    def state_dict(self) -> dict[str, Tensor]:
        if self.provider is not None:
            return self.provider.state_dict()
        buffers = {"mixing": self._mixing, "serving": self._serving}
        return {
            "n_rows": torch.tensor(self._n_rows),
            "generator_state": self._generator.get_state(),
            "skipped": self.skipped.state(),
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
        self.skipped.restore(state["skipped"])
        self._mixing, self._serving = (
            state[name].to(self.device) if name in state else None for name in ("mixing", "serving")
        )
