"""What is studied: an SAE, the model that it reads, and recorded activations of some studies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sae_lens_maira.features.recording import Recording
from sae_lens_maira.hooked import HookedMaira2


@dataclass(frozen=True)
class Subject:
    """What is shown: an SAE, the model that it reads, and what was recorded of some studies.

    Args:
        sae: as SAE-Lens loads it; nothing changes it.
        model: for texts of tokens and the unembedding; it does not run.
        recording: of the hook point.
        hook_name: where the SAE reads.
    """

    sae: Any
    model: HookedMaira2
    recording: Recording
    hook_name: str

    @property
    def unembedding(self) -> torch.Tensor:
        """(d_model, d_vocab) in fp32."""
        return self.model.vlm.module.get_output_embeddings().weight.detach().T.float().cpu()

    def texts(self) -> list[str]:
        """What every id of rows looks like, up to the first study's; padding looks like nothing."""
        vocab = self.model.tokenizer.vocab
        texts = [vocab.text_of(token_id) for token_id in range(self.model.row_vocabulary.study_token(0))]
        texts[self.pad_token_id] = ""
        return texts

    @property
    def pad_token_id(self) -> int:
        return int(self.model.tokenizer.pad_token_id)
