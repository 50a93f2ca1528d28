"""Batch top-k and per-token top-k without a full sort, exact.

A batch top-k over ``n_tokens * d_sae`` pre-activations keeps under one percent of them. Sorting or partitioning all of
them costs more than the encoder. Instead:

1. guess a threshold somewhat below the k-th largest activation (from the last step, or from a sample of tokens);
2. encode a block of latents, keep what is above the guess, reuse the block's memory for the next one: the dense
   pre-activations of the batch never exist as a whole;
3. take the exact top-k among the few candidates that are left;
4. if the guess was too high (fewer candidates than wanted), lower it and repeat; at zero every positive activation is
   a candidate, and activations that are not positive never count.

The result does not depend on the guess. Ties at the cut are broken in the order of (token, latent).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

BLOCK_ELEMENTS = 1 << 22
"""Pre-activations encoded at a time on a CPU (16 MiB in fp32); other devices encode the batch at once. Without
blocks, a step takes 5.9% more processor time at d_in 512 and d_sae 4,096 (benchmarks/README.md)."""
SAMPLE_TOKENS = 64
"""Tokens encoded to estimate a threshold when there is no previous step."""
ATTEMPTS = 3
"""Thresholds to try: the guess, an estimate from a sample of this batch, and zero."""


@dataclass(frozen=True)
class Selection:
    """Active pairs in latent order (tokens ascending within a latent); ``activations`` are what was compared."""

    tokens: Int[Tensor, " n_active"]
    latents: Int[Tensor, " n_active"]
    preactivations: Float[Tensor, " n_active"]
    activations: Float[Tensor, " n_active"]


@dataclass
class ThresholdGuess:
    """The last step's cut, and how far below it the next step's threshold starts."""

    cut: float | None = None
    slack: float = 0.1

    @property
    def value(self) -> float | None:
        return None if self.cut is None else self.cut * (1 - self.slack)

    def learn(self, cut: float, n_candidates: int, n_wanted: int) -> None:
        self.cut = cut
        if n_candidates > 1.6 * n_wanted:
            self.slack = max(self.slack * 0.8, 0.01)
        elif n_candidates < 1.2 * n_wanted:
            self.slack = min(self.slack * 1.25, 0.9)


@dataclass(frozen=True)
class Encoder:
    """Computes pre-activations of any block of latents: ``x @ W_enc + b_enc``, in autocast's dtype."""

    x: Float[Tensor, "n_tokens d_in"]
    rows: Float[Tensor, "d_sae d_in"]
    bias: Float[Tensor, " d_sae"]
    norms: Float[Tensor, " d_sae"] | None = None
    """Decoder norms that activations are multiplied by before they are compared; None for ones."""

    @property
    def d_sae(self) -> int:
        return self.rows.shape[0]

    def products(
        self, start: int, stop: int, out: Float[Tensor, "n_block n_tokens"] | None = None
    ) -> Float[Tensor, "n_block n_tokens"]:
        """Pre-activations without the bias, one row per latent, so that blocks are in latent order."""
        rows, device_type = self.rows[start:stop], self.x.device.type
        if torch.is_autocast_enabled(device_type):
            dtype = torch.get_autocast_dtype(device_type)
            return rows.to(dtype) @ self.x.to(dtype).T
        return torch.mm(rows, self.x.T, out=out)

    def preactivations(self) -> Float[Tensor, "d_sae n_tokens"]:
        return self.products(0, self.d_sae) + self.bias[:, None]

    def product_limits(self, threshold: float) -> Float[Tensor, " d_sae"]:
        """Products at or below this give activations at or below the threshold, rounding included."""
        limits = torch.full_like(self.bias, threshold)
        if self.norms is not None:
            limits = limits / self.norms
        margin = 8 * torch.finfo(limits.dtype).eps * (limits.abs() + self.bias.abs())
        return limits - self.bias - margin


@torch.no_grad()
def select_batch_topk(encoder: Encoder, n_wanted: int, guess: ThresholdGuess) -> Selection:
    """The ``n_wanted`` largest positive activations of the whole batch, or all positive ones if there are fewer."""
    if n_wanted <= 0:
        return _selection(encoder, *_candidates(encoder, float("inf")))
    threshold = guess.value
    if threshold is None:
        threshold = _sampled_threshold(encoder, n_wanted)
    for attempt in range(ATTEMPTS):
        if attempt == 1:
            threshold = min(_sampled_threshold(encoder, n_wanted), 0.5 * threshold)
        elif attempt == 2:
            threshold = 0.0
        selection = _selection(encoder, *_candidates(encoder, threshold))
        n_candidates = selection.activations.numel()
        if n_candidates < n_wanted and threshold > 0:
            continue
        kept, cut = _exact_topk(selection, n_wanted, encoder.d_sae)
        if threshold == 0 or cut > threshold:
            guess.learn(cut, n_candidates, n_wanted)
            return kept
    raise AssertionError("a threshold of zero always succeeds")


@torch.no_grad()
def select_token_topk(encoder: Encoder, k: int) -> Selection:
    """The ``k`` largest positive activations of each token. Ties are broken in the order of latents."""
    preactivations = encoder.preactivations().T.contiguous()
    activations = preactivations if encoder.norms is None else preactivations * encoder.norms
    latents, tokens = token_topk_mask(activations, k).T.nonzero(as_tuple=True)
    return Selection(tokens, latents, preactivations[tokens, latents], activations[tokens, latents])


def token_topk_mask(activations: Float[Tensor, "n_tokens d_sae"], k: int) -> Bool[Tensor, "n_tokens d_sae"]:
    cuts = activations.topk(min(k, activations.shape[1]), dim=1).values[:, -1:].clamp(min=0)
    above, equal = activations > cuts, (activations == cuts) & (cuts > 0)
    n_free = min(k, activations.shape[1]) - above.sum(1, keepdim=True)
    surplus = equal.sum(1, keepdim=True) > n_free
    if surplus.any():
        equal &= equal.cumsum(1) <= n_free
    return above | equal


def _candidates(
    encoder: Encoder, threshold: float
) -> tuple[Int[Tensor, " n_candidates"], Float[Tensor, " n_candidates"]]:
    """Flat (latent * n_tokens + token) positions above the threshold, and their pre-activations, in latent order."""
    n_tokens, d_sae, device = encoder.x.shape[0], encoder.d_sae, encoder.x.device
    per_block = d_sae if device.type != "cpu" else min(max(BLOCK_ELEMENTS // max(n_tokens, 1), 1), d_sae)
    buffer = torch.empty(per_block, n_tokens, dtype=encoder.bias.dtype, device=device)
    mask = torch.empty(per_block, n_tokens, dtype=torch.bool, device=device)
    limits = encoder.product_limits(threshold)[:, None]
    positions, products = [], []
    for start in range(0, d_sae, per_block):
        stop = min(start + per_block, d_sae)
        block = encoder.products(start, stop, out=buffer[: stop - start])
        above = torch.gt(block, limits[start:stop], out=mask[: stop - start])
        found = above.view(-1).nonzero().view(-1)
        positions.append(found + start * n_tokens)
        products.append(block.view(-1)[found])
    position = torch.cat(positions)
    return position, torch.cat(products) + encoder.bias[position // max(n_tokens, 1)]


def _selection(
    encoder: Encoder, positions: Int[Tensor, " n_candidates"], preactivations: Float[Tensor, " n_candidates"]
) -> Selection:
    n_tokens = max(encoder.x.shape[0], 1)
    latents = positions // n_tokens
    tokens = positions - latents * n_tokens
    activations = preactivations if encoder.norms is None else preactivations * encoder.norms[latents]
    return Selection(tokens, latents, preactivations, activations)


def _exact_topk(candidates: Selection, n_wanted: int, d_sae: int) -> tuple[Selection, float]:
    """The ``n_wanted`` largest positive candidates, and the smallest activation among them (0 if there are fewer)."""
    activations = candidates.activations
    if activations.numel() > n_wanted:
        cut = activations.topk(n_wanted, sorted=False).values.min().clamp(min=0)
    else:
        cut = activations.new_zeros(())
    keep = activations > cut
    n_free = n_wanted - int(keep.sum())
    if cut > 0 and n_free > 0:
        equal = (activations == cut).nonzero().view(-1)
        if equal.numel() > n_free:
            order = candidates.tokens[equal] * d_sae + candidates.latents[equal]
            equal = equal[order.argsort()[:n_free]]
        keep[equal] = True
    index = keep.nonzero().view(-1)
    kept = Selection(
        candidates.tokens[index], candidates.latents[index], candidates.preactivations[index], activations[index]
    )
    return kept, float(cut)


def _sampled_threshold(encoder: Encoder, n_wanted: int) -> float:
    """A threshold that about 1.5 times the wanted activations should exceed, from evenly spaced tokens."""
    n_tokens = encoder.x.shape[0]
    step = max(n_tokens // SAMPLE_TOKENS, 1)
    sample = Encoder(encoder.x[::step], encoder.rows, encoder.bias, encoder.norms)
    activations = sample.preactivations()
    if encoder.norms is not None:
        activations = activations * encoder.norms[:, None]
    n_sampled = min(int(1.5 * n_wanted * sample.x.shape[0] / n_tokens) + 1, activations.numel())
    return max(float(activations.flatten().topk(n_sampled, sorted=False).values.min()), 0.0)


def batch_topk_mask(activations: Float[Tensor, "n_tokens d_sae"], n_wanted: int) -> Bool[Tensor, "n_tokens d_sae"]:
    """The same selection as ``select_batch_topk``, from dense activations."""
    flat = activations.reshape(-1)
    n_wanted = min(n_wanted, flat.numel())
    if n_wanted <= 0:
        return torch.zeros_like(activations, dtype=torch.bool)
    cut = flat.topk(n_wanted, sorted=False).values.min()
    positions = ((flat >= cut) & (flat > 0)).nonzero().view(-1)
    d_sae = activations.shape[-1]
    candidates = Selection(positions // d_sae, positions % d_sae, flat[positions], flat[positions])
    kept, _ = _exact_topk(candidates, n_wanted, d_sae)
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[kept.tokens * d_sae + kept.latents] = True
    return mask.view(activations.shape)
