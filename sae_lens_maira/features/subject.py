"""What dashboards and scores are made from: an SAE, its model, and recorded activations of some studies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_maira.features.recording import Recording
from sae_lens_maira.hooked import HookedVisionLanguageModel


@dataclass(frozen=True)
class Subject:
    """An SAE, the model that it reads, and recorded activations of some studies.

    Args:
        sae: an SAE, as SAE-Lens loads it; it is never modified.
        model: the model that the SAE reads. It provides token texts and the unembedding, and is not run.
        recording: activations at the SAE's hook point.
    """

    sae: Any
    model: HookedVisionLanguageModel
    recording: Recording

    @property
    def hook_name(self) -> str:
        """The SAE's hook point."""
        return self.recording.hook_name

    @property
    def unembedding(self) -> Float[Tensor, "d_model d_vocab"]:
        """The model's unembedding in fp32, on the CPU."""
        weight: torch.Tensor = self.model.vlm.module.get_output_embeddings().weight
        return weight.detach().T.float().cpu()

    def texts(self) -> list[str]:
        """The readable text of every id of rows, up to those of studies; padding has none."""
        vocab = self.model.tokenizer.vocab
        texts = [vocab.text_of(token_id) for token_id in range(self.model.row_vocabulary.study_token(0))]
        texts[self.pad_token_id] = ""
        return texts

    @property
    def pad_token_id(self) -> int:
        """Token id of padding."""
        return int(self.model.tokenizer.pad_token_id)
