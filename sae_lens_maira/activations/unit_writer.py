"""A unit while it is made: its studies come in the order of batches, and are written in the order of the source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sae_lens_maira.activations.config import WriteConfig
from sae_lens_maira.activations.decode_ahead import DecodedStudy
from sae_lens_maira.activations.format import NORMS_PREFIX, CachedStudy, SkippedStudy, UnitRecord, write_unit
from sae_lens_maira.activations.plan import EncodedStudy
from sae_lens_maira.errors import CacheError

if TYPE_CHECKING:
    from sae_lens_maira.hooked.model import HookedMaira2


class UnitInMemory:
    """Activations of the studies of one unit, without padding."""

    def __init__(self, settings: WriteConfig) -> None:
        self._settings = settings
        self._activations: dict[int, dict[str, Tensor]] = {}
        self._decoded: dict[int, tuple[EncodedStudy, dict[str, str]]] = {}
        self.skipped: list[SkippedStudy] = []

    def skip(self, skipped: Sequence[SkippedStudy]) -> None:
        """Leave studies out."""
        self.skipped += skipped

    def run(self, model: HookedMaira2, batch: Sequence[DecodedStudy | SkippedStudy]) -> None:
        """Run the model on those studies of a batch whose images could be read.

        Raises:
            CacheError: the stored dtype cannot hold the activations.
        """
        self.skip([study for study in batch if isinstance(study, SkippedStudy)])
        ready = [study for study in batch if isinstance(study, DecodedStudy)]
        if not ready:
            return
        rows = [study.encoded.row for study in ready]
        inputs = model.reader.assemble(
            [study.encoded.ids for study in ready],
            rows,
            max(len(row.tokens) for row in rows),
            "right",
            torch.cat([study.pixel_values for study in ready]),
        )
        names = self._settings.hook_names
        _, cache = model.run_with_cache(inputs, names_filter=list(names), return_type=None)
        for place, study in enumerate(ready):
            n_tokens = len(study.encoded.row.tokens)
            self._add(study, {name: cache[name][place, :n_tokens] for name in names})

    def _add(self, study: DecodedStudy, activations: dict[str, Tensor]) -> None:
        encoded = study.encoded
        stored: dict[str, Tensor] = {}
        for name, values in activations.items():
            if not values.isfinite().all():
                self.skip([SkippedStudy(encoded.index, encoded.study.study_id, "activations not finite", name)])
                return
            stored[name] = torch.empty(values.shape, dtype=self._settings.torch_dtype).copy_(values)
            stored[NORMS_PREFIX + name] = norms = stored[name].float().norm(dim=-1)
            if not norms.isfinite().all():
                raise CacheError(
                    f"Activations at {name} reach {values.abs().max():.3g}, which {self._settings.dtype} cannot hold; "
                    "choose dtype bfloat16 or float32."
                )
        self._activations[encoded.index] = stored
        self._decoded[encoded.index] = (encoded, study.images)

    def write(self, path: Path, unit: int, cache: str, d_in: int) -> UnitRecord:
        """Write the unit's file and record; see :func:`~sae_lens_maira.activations.format.write_unit`."""
        parts: dict[str, list[Tensor]] = {}
        for name in self._settings.hook_names:
            parts[name] = [torch.empty(0, d_in, dtype=self._settings.torch_dtype)]
            parts[NORMS_PREFIX + name] = [torch.empty(0)]
        for name in ("token_ids", "study_index", "position"):
            parts[name] = [torch.empty(0, dtype=torch.int32)]
        parts["kind"] = [torch.empty(0, dtype=torch.uint8)]
        studies: list[CachedStudy] = []
        for index in sorted(self._decoded):
            encoded, images = self._decoded[index]
            row, n_tokens = encoded.row, len(encoded.row.tokens)
            for name, values in self._activations[index].items():
                parts[name].append(values)
            parts["token_ids"].append(torch.from_numpy(row.tokens).to(torch.int32))
            parts["study_index"].append(torch.full((n_tokens,), index, dtype=torch.int32))
            parts["position"].append(torch.arange(n_tokens, dtype=torch.int32))
            parts["kind"].append(torch.from_numpy(row.kinds).to(torch.uint8))
            studies.append(CachedStudy(index, encoded.study.study_id, n_tokens, images))
        skipped = sorted(self.skipped, key=lambda study: study.index)
        return write_unit(path, unit, cache, parts, studies, skipped)
