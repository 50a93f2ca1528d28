"""What is studied: an SAE, the model that it reads, and recorded activations of some studies."""

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
        sae: as SAE-Lens loads it; nothing changes it.
        model: for texts of tokens and the unembedding; it does not run.
        recording: of the hook point that the SAE reads.
    """

    sae: Any
    model: HookedVisionLanguageModel
    recording: Recording

    @property
    def hook_name(self) -> str:
        """Where the SAE reads."""
        return self.recording.hook_name

    @property
    def unembedding(self) -> Float[Tensor, "d_model d_vocab"]:
        """The model's unembedding in fp32, on the CPU."""
        weight: torch.Tensor = self.model.vlm.module.get_output_embeddings().weight
        return weight.detach().T.float().cpu()

    def texts(self) -> list[str]:
        """The readable text of every id of rows below the first study's; padding has none."""
        vocab = self.model.tokenizer.vocab
        texts = [vocab.text_of(token_id) for token_id in range(self.model.row_vocabulary.study_token(0))]
        texts[self.pad_token_id] = ""
        return texts

    @property
    def pad_token_id(self) -> int:
        """The id of padding."""
        return int(self.model.tokenizer.pad_token_id)
