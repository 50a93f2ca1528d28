"""HookedMaira2: MAIRA-2 with hook points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from typing_extensions import Self

from sae_lens_maira.data.study import Study
from sae_lens_maira.hooked.check import check_hook_points
from sae_lens_maira.hooked.model import HookedVisionLanguageModel
from sae_lens_maira.maira2 import Maira2ForConditionalGeneration, Maira2Processor
from sae_lens_maira.maira2.adapter import Maira2Adapter
from sae_lens_maira.rows.policy import TokenPolicy


class HookedMaira2(HookedVisionLanguageModel):
    """MAIRA-2 with a residual stream that can be read and edited on compact rows.

    Args:
        model: the transformers model, in any dtype and on any device or devices.
        processor: the checkpoint's processor.
        studies: the studies to which study tokens refer, by index; :meth:`with_studies` binds the weights to others.
        policy: which tokens rows keep.
        name: the checkpoint's folder or Hub id; the model's own if None.
    """

    def __init__(
        self,
        model: Maira2ForConditionalGeneration,
        processor: Maira2Processor,
        studies: Sequence[Study] = (),
        policy: TokenPolicy | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(Maira2Adapter(model, processor), studies, policy, name)

    @property
    def maira2(self) -> Maira2ForConditionalGeneration:
        """The transformers model."""
        return self.vlm.module

    @property
    def processor(self) -> Maira2Processor:
        """The checkpoint's processor."""
        processor: Any = self.vlm.processor
        return processor.maira2

    @classmethod
    def from_pretrained(
        cls,
        name: Any,
        studies: Sequence[Study] = (),
        policy: TokenPolicy | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a checkpoint and its processor, and compare a forward pass with hooks to one without.

        Args:
            name: a folder, a Hub id, or ``phantom`` for the model that comes with this package.
            studies: the studies to which study tokens refer.
            policy: which tokens rows keep.
            kwargs: as for ``Maira2ForConditionalGeneration.from_pretrained``: ``dtype``, ``device_map``, ...

        Raises:
            CheckpointError: this is not a checkpoint of MAIRA-2, or there is no access to it.
        """
        path = name
        if str(name) == "phantom":
            from sae_lens_maira.phantom.model.pretrained import PHANTOM_PATH

            path = PHANTOM_PATH
            kwargs.setdefault("dtype", torch.float32)
        where = {key: kwargs[key] for key in ("revision", "token", "cache_dir", "subfolder") if key in kwargs}
        model = Maira2ForConditionalGeneration.from_pretrained(path, **kwargs)
        hooked = cls(model, Maira2Processor.from_pretrained(path, **where), studies, policy, name=str(name))
        check_hook_points(hooked)
        return hooked
