"""Stage 2 of the training: the projector and the language model learn to report, on a frozen vision tower.

1. The batches are those of ``report_batches``. The tower's features come from a cache.
2. The loss is the language model's, on the answers alone.
3. Two auxiliary heads help the model to plan. One reads the last prompt token at half the depth and learns what is
   present and how it changed, so that the model gathers its evidence, both images included, before it speaks. The other
   reads the token before each sentence, one layer below the top, and learns what is still to be said: without it the
   model takes thousands of steps to stop repeating itself. Both heads are thrown away afterwards.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sae_lens_maira.phantom.training.report_batches import ReportBatch
from sae_lens_maira.phantom.world.concepts import CHANGES, VISIBLE

N_CHANGES = len(CHANGES) + 1
"""Classes of the auxiliary head for changes: no change, then ``CHANGES``."""


def attention_mask(segments: Int[Tensor, "batch sequence"]) -> Bool[Tensor, "batch 1 sequence sequence"]:
    """True where a token may look: at earlier tokens of the prompt or of its own answer."""
    looking, seen = segments[:, :, None], segments[:, None, :]
    n = segments.shape[1]
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    return (causal & ((seen == 0) | (seen == looking)))[:, None]


class ReportHeads(nn.Module):
    """Linear heads on the language model's hidden states, for training only."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.present = nn.Linear(d_model, len(VISIBLE))
        self.change = nn.Linear(d_model, len(VISIBLE) * N_CHANGES)
        self.plan_norm = nn.LayerNorm(d_model)
        self.remaining = nn.Linear(d_model, 2 * len(VISIBLE))


def report_loss(
    model: Any, heads: ReportHeads, features: Float[Tensor, "n_pool_images n_patches d_vision"], batch: ReportBatch
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The language model's loss on the answers, and the auxiliary loss.

    The first equals the mean over target tokens of ``model(input_ids, pixel_values, labels=labels).loss`` with each
    prompt and each of its answers alone, but uses cached features, computes each prompt once, and computes logits only
    where a target is predicted.
    """
    core = model.model
    embeddings = core.language_model.embed_tokens(batch.input_ids)
    images = core.multi_modal_projector(features[batch.images].float())
    places = (batch.input_ids == model.config.image_token_index)[..., None].expand_as(embeddings)
    embeddings = embeddings.masked_scatter(places, images.flatten(0, 1))
    output = core.language_model(
        inputs_embeds=embeddings,
        position_ids=batch.position_ids,
        attention_mask=attention_mask(batch.segments),
        use_cache=False,
        output_hidden_states=True,
    )
    rows, positions = batch.predicted_from.unbind(-1)
    language = F.cross_entropy(model.lm_head(output.last_hidden_state[rows, positions]), batch.targets)

    n_layers = model.config.text_config.num_hidden_layers
    middle = output.hidden_states[(n_layers + 1) // 2]
    evidence = heads.norm(middle[torch.arange(len(middle)), batch.answer_start])
    auxiliary = 4.0 * F.binary_cross_entropy_with_logits(heads.present(evidence), batch.present)
    asked = batch.change != -100
    if asked.any():
        change = heads.change(evidence).view(*batch.change.shape, N_CHANGES)
        auxiliary = auxiliary + 4.0 * F.cross_entropy(change[asked], batch.change[asked])
    if len(batch.boundaries):
        rows, positions = batch.boundaries.unbind(-1)
        plan = heads.plan_norm(output.hidden_states[n_layers - 1][rows, positions])
        auxiliary = auxiliary + 12.0 * F.binary_cross_entropy_with_logits(heads.remaining(plan), batch.remaining)
    return language, auxiliary
