"""What a feature does next: which next tokens it promotes at the last token of the prompt, through the layers above.

1. Exactly: the feature's part of the activation, a_f d_f, is taken away, and the layers above run again for that token.
   The effect on a token is how much its log probability falls: positive for tokens that the feature promotes.
2. Estimated: the gradient of the log probability times a_f d_f, for all features in one backward pass (attribution
   patching). ``agreement``, the correlation with the exact effects, says how good the estimate is.

What the SAE does not reconstruct is a node like the features: its error is taken away in the same way (Marks et al.
2024, arXiv 2403.19647, section 3). It has the number :data:`ERROR_NODE`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_maira.attribution.reading import FeatureReader
from sae_lens_maira.data.study import Study
from sae_lens_maira.hooked.embedded import edited_logits, embed_images, embed_prompt, read_last

ERROR_NODE = -1
N_TOKENS = 64
"""Tokens per study: those that some node affects most."""
_NODES_AT_ONCE = 64


def next_effects(reader: FeatureReader, study: Study) -> dict[str, Any]:
    """The effects of all features that fire at the last token of a study's prompt, as plain values.

    Returns:
        ``nodes`` (numbers of features, and :data:`ERROR_NODE`), ``tokens`` (ids), ``exact`` and ``estimated`` effects
        of shape (n_nodes, n_tokens), and ``agreement``, the correlation of the two.
    """
    vlm = reader.vlm
    images = embed_images(vlm, [study])[0]
    with torch.no_grad():
        prompt = embed_prompt(vlm, vlm.processor.encode(study, "prompt"), images).embeddings
        hidden = read_last(vlm, reader.place, prompt[None])[0]
    nodes, parts = node_parts(reader, hidden)
    with torch.no_grad():
        plain = log_probabilities(reader, prompt, torch.zeros_like(parts[:1]))
        exact = plain - torch.cat([log_probabilities(reader, prompt, -chunk) for chunk in parts.split(_NODES_AT_ONCE)])
    tokens = exact.abs().max(dim=0).values.topk(min(N_TOKENS, exact.shape[1])).indices
    estimated = _estimate(reader, prompt, parts, tokens)
    exact = exact[:, tokens]
    return {
        "nodes": nodes,
        "tokens": tokens.tolist(),
        "exact": _rounded(exact),
        "estimated": _rounded(estimated),
        "agreement": float(torch.corrcoef(torch.stack([exact.flatten(), estimated.flatten()]))[0, 1]),
    }


@torch.no_grad()
def node_parts(
    reader: FeatureReader, hidden: Float[Tensor, " d_in"]
) -> tuple[list[int], Float[Tensor, "n_nodes d_in"]]:
    """What each firing feature adds to an activation, and what the SAE leaves out of it; with b_dec they sum to it."""
    sae = reader.sae
    activations = sae.encode(hidden[None].to(reader.decoder.dtype))
    error = hidden.to(reader.decoder.dtype) - sae.decode(activations)[0]
    fires = activations[0].nonzero()[:, 0]
    parts = activations[0, fires, None] * reader.decoder[fires]
    return [*fires.tolist(), ERROR_NODE], torch.cat([parts, error[None]])


def log_probabilities(
    reader: FeatureReader, prompt: Float[Tensor, "n_tokens d_model"], deltas: Float[Tensor, "n_edits d_in"]
) -> Float[Tensor, "n_edits d_vocab"]:
    """Log probabilities of the next token, for edits at the last token of the prompt."""
    return edited_logits(reader.vlm, reader.place, prompt, deltas).float().log_softmax(dim=-1)


def summarize_next(units: Sequence[dict[str, Any]], n_tokens: int) -> list[tuple[int, int, int, float, float]]:
    """The tokens that each node affects most, on average over the studies in which it fires.

    Args:
        units: of studies, as :func:`next_effects` returns them.
        n_tokens: tokens per node.

    Returns:
        node, number of studies, token, mean exact effect and mean estimate; the strongest effect of a node first.
    """
    counts: dict[int, int] = {}
    sums: dict[tuple[int, int], Float[np.ndarray, " 2"]] = {}
    for unit in units:
        both = np.stack([np.array(unit["exact"]), np.array(unit["estimated"])], axis=-1)
        for row, node in enumerate(unit["nodes"]):
            counts[node] = counts.get(node, 0) + 1
            for column, token in enumerate(unit["tokens"]):
                sums[node, token] = sums.get((node, token), np.zeros(2)) + both[row, column]
    by_node: dict[int, list[tuple[int, int, int, float, float]]] = {}
    for (node, token), (exact, estimated) in sums.items():
        n = counts[node]
        by_node.setdefault(node, []).append((node, n, token, float(exact / n), float(estimated / n)))
    return [
        row
        for node in sorted(by_node)
        for row in sorted(by_node[node], key=lambda row: (-abs(row[3]), row[2]))[:n_tokens]
    ]


def _estimate(
    reader: FeatureReader, prompt: Tensor, parts: Tensor, tokens: Tensor
) -> Float[Tensor, "n_nodes n_tokens"]:
    with torch.enable_grad():
        delta = torch.zeros_like(parts[:1]).requires_grad_()
        chosen = log_probabilities(reader, prompt.detach(), delta)[0, tokens]
        gradients = [torch.autograd.grad(value, delta, retain_graph=True)[0][0] for value in chosen]
    return parts @ torch.stack(gradients).T.to(parts.dtype)


def _rounded(values: Tensor) -> list[list[float]]:
    return [[round(value, 6) for value in row] for row in values.double().tolist()]
