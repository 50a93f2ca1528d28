"""Choosing latents by what they do, not by what they fire on.

Latents that detect a finding best rarely write it (Arad et al. 2025, "SAEs Are Good for Steering -- If You Select the
Right Features", arXiv 2505.20063). All scores here come from one prefill per study, in batches of rows that differ in
the edited latent:

1. :func:`contrast`: how much more a latent fires with the concept than without, where the report is about to begin.
2. :func:`next_token_scores`: the output score, and the change of the model's confidence, at one position.
3. :func:`wording_scores`: the shift of the log probability of a concept's wordings, by forced decoding.
4. :func:`gradient_scores`: the same for all latents at once, to first order; :func:`wording_scores` verifies the best.
5. :func:`sparse_fit`: a few latents whose sum comes closest to a direction, by a greedy choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import nnls
from torch import Tensor

from sae_lens_maira.data.study import Study
from sae_lens_maira.hooked.dictionary import Dictionary
from sae_lens_maira.hooked.edits import Add
from sae_lens_maira.hooked.where import Where
from sae_lens_maira.steering.continuation import Prefill, Row
from sae_lens_maira.steering.engine import SteeringEngine

LAST_PROMPT_TOKEN = Where(include=("last_prompt_token",))
IMAGES = Where(include=("images",))
_MAX_ROWS = 256


@dataclass(frozen=True)
class Contrast:
    """Means over positions and studies, or the difference of those with a concept from those without.

    Args:
        activations: of each latent.
        residual: of the residual stream: the difference of means, the supervised direction.
    """

    activations: Float[Tensor, " d_sae"]
    residual: Float[Tensor, " d_in"]


def means_at(engine: SteeringEngine, hook: str, study: Study, places: Sequence[Where]) -> list[Contrast]:
    """The means of latents' activations and of the residual stream at places of a study's prompt, from one prefill."""
    prefill = engine.prefill(study)
    residual, sae = engine.residual_at(prefill, hook)[0], engine.dictionaries[hook].sae
    found: list[Contrast] = []
    for where in places:
        x = residual[torch.from_numpy(where.prompt_mask(prefill.kinds, study.study_id)).to(residual.device)]
        with torch.no_grad():
            activations = sae.encode(x.to(sae.W_dec)).float().mean(dim=0)
        found.append(Contrast(activations.cpu(), x.float().mean(dim=0).cpu()))
    return found


def contrast(
    engine: SteeringEngine,
    hook: str,
    with_concept: Sequence[Study],
    without: Sequence[Study],
    where: Where = LAST_PROMPT_TOKEN,
) -> Contrast:
    """The difference between two groups of studies, such as the same anatomies rendered with and without a concept.

    Args:
        engine: runs the model.
        hook: the SAE's hook point, one of the residual stream.
        with_concept: studies that show the concept.
        without: studies that do not; as many and in the same order if they are pairs.
        where: the positions whose mean is compared.
    """
    shown = [means_at(engine, hook, study, [where])[0] for study in with_concept]
    absent = [means_at(engine, hook, study, [where])[0] for study in without]

    def mean(values: list[Tensor]) -> Tensor:
        return torch.stack(values).mean(dim=0)

    return Contrast(
        mean([own.activations for own in shown]) - mean([own.activations for own in absent]),
        mean([own.residual for own in shown]) - mean([own.residual for own in absent]),
    )


@dataclass(frozen=True)
class NextTokenScores:
    """What adding each latent does to the distribution of the next token.

    Args:
        output: Arad et al. 2025, section 4: (1 - r / d_vocab) p, where r is the best rank and p the largest
            probability among the latent's 20 logit-lens tokens, once the latent is added.
        confidence: change of the largest probability (arXiv 2510.03659).
        divergence: Kullback-Leibler divergence of the steered from the unsteered distribution, in nats.
    """

    output: Float[Tensor, " n_features"]
    confidence: Float[Tensor, " n_features"]
    divergence: Float[Tensor, " n_features"]


@torch.no_grad()
def next_token_logits(
    engine: SteeringEngine,
    prefill: Prefill,
    features: Sequence[int],
    dose: float,
    hook: str | None = None,
    where: Where = LAST_PROMPT_TOKEN,
    max_rows: int = _MAX_ROWS,
) -> Float[Tensor, "n_features d_vocab"]:
    """Logits of the report's first token with each latent added, one row per latent."""
    parts = []
    for start in range(0, len(features), max_rows):
        rows = [Row((Add(feature, dose, hook),), where) for feature in features[start : start + max_rows]]
        parts.append(engine.start(prefill, rows).logits.float())
    return torch.cat(parts)


@torch.no_grad()
def next_token_scores(
    engine: SteeringEngine,
    prefill: Prefill,
    features: Sequence[int],
    dose: float,
    hook: str,
    where: Where = LAST_PROMPT_TOKEN,
    n_lens: int = 20,
) -> NextTokenScores:
    """Score latents at one position of a study's prompt.

    Args:
        engine: runs the model.
        prefill: the study's prompt.
        features: the latents.
        dose: what is added, in strengths.
        hook: the SAE's hook point.
        where: the position.
        n_lens: logit-lens tokens per latent: those that its decoder row raises most through the unembedding.
    """
    logits = next_token_logits(engine, prefill, features, dose, hook, where)
    lens = engine.lens(engine.dictionaries[hook].decoder[list(features)]).topk(n_lens, dim=1).indices
    log_p, before = logits.log_softmax(dim=1), prefill.logits.float().log_softmax(dim=1)
    of_lens = log_p.gather(1, lens).max(dim=1)
    rank = (log_p > of_lens.values[:, None]).sum(dim=1)
    output = (1 - rank / logits.shape[1]) * of_lens.values.exp()
    confidence = log_p.max(dim=1).values.exp() - before.max(dim=1).values.exp()
    return NextTokenScores(output, confidence, (log_p.exp() * (log_p - before)).sum(dim=1))


def wording_log_probs(
    engine: SteeringEngine,
    prefill: Prefill,
    rows: Sequence[Row],
    wordings: Sequence[Sequence[int]],
    added: dict[str, Tensor] | None = None,
    max_rows: int = _MAX_ROWS,
) -> Float[Tensor, "rows n_wordings"]:
    """Log probability of each wording as the start of each row's report, by forced decoding.

    Args:
        engine: runs the model.
        prefill: the study's prompt.
        rows: the edits of each row.
        wordings: token ids of each wording.
        added: further vectors to add, as for :meth:`SteeringEngine.start`; only for rows that fit one batch.
        max_rows: rows times wordings in one batch.
    """
    width, n = max(map(len, wordings)), len(wordings)
    tokens = torch.tensor([[*own, *[0] * (width - len(own))] for own in wordings])
    counts = torch.tensor([[step < len(own) for step in range(width)] for own in wordings])
    step = max(max_rows // n, 1)
    found: list[Tensor] = []
    for start in range(0, len(rows), step):
        chunk = rows[start : start + step]
        state = engine.start(prefill, chunk, added)
        state.select(torch.arange(len(chunk)).repeat_interleave(n))
        own = tokens.repeat(len(chunk), 1).to(state.logits.device)
        first = state.logits[:, None].float()
        after = engine.feed(state, own[:, :-1]).float() if width > 1 else first[:, :0]
        log_p = torch.cat([first, after], dim=1).log_softmax(dim=-1).gather(2, own[..., None])[..., 0]
        found.append((log_p * counts.repeat(len(chunk), 1).to(log_p)).sum(dim=1).reshape(len(chunk), n))
    return torch.cat(found)


@torch.no_grad()
def wording_scores(
    engine: SteeringEngine,
    prefill: Prefill,
    rows: Sequence[Row],
    wordings: Sequence[Sequence[int]],
) -> Float[Tensor, " rows"]:
    """Shift of a concept's log probability by each row's edits: that of any of its wordings starting the report."""
    steered = wording_log_probs(engine, prefill, rows, wordings).logsumexp(dim=1)
    return steered - wording_log_probs(engine, prefill, [Row()], wordings).logsumexp(dim=1)


def gradient_scores(
    engine: SteeringEngine,
    prefill: Prefill,
    hook: str,
    wordings: Sequence[Sequence[int]],
    where: Where | None = None,
) -> Float[Tensor, " d_sae"]:
    """First-order estimate of :func:`wording_scores` for all latents: the shift per strength, at a dose of 0."""
    dictionary = engine.dictionaries[hook]
    vector = torch.zeros(1, engine.model.cfg.d_model, device=engine.model.cfg.device, requires_grad=True)
    row = Row((), where or Where())
    with torch.enable_grad():
        log_p = wording_log_probs(engine, prefill, [row], wordings, {hook: vector}).logsumexp(dim=1)
        (gradient,) = torch.autograd.grad(log_p.sum(), vector)
    return (dictionary.decoder.to(gradient) @ gradient[0]).cpu() * dictionary.strengths.cpu()


def sparse_fit(
    dictionary: Dictionary, direction: Float[Tensor, " d_in"], n_features: int
) -> tuple[Int[np.ndarray, " _"], Float[np.ndarray, " _"]]:
    """A few latents whose weighted sum comes closest to a direction.

    Orthogonal matching pursuit with weights that are not negative: the latent whose decoder row points most along the
    rest is taken, then all weights are fitted again by least squares.

    Returns:
        the latents and their weights, in strengths; latents of weight 0 are left out.
    """
    decoder = dictionary.decoder.float().cpu().numpy().astype(np.float64)
    target = direction.cpu().numpy().astype(np.float64)
    usable = dictionary.strengths.cpu().numpy() > 0
    along = decoder / np.maximum(np.linalg.norm(decoder, axis=1, keepdims=True), 1e-12)
    chosen: list[int] = []
    weights, rest = np.zeros(0), target
    for _ in range(n_features):
        scores = np.where(usable, along @ rest, -np.inf)
        scores[chosen] = -np.inf
        if scores.max() <= 0:
            break
        chosen.append(int(scores.argmax()))
        weights, _ = nnls(decoder[chosen].T, target)
        rest = target - weights @ decoder[chosen]
    kept = weights > 0
    features = np.array(chosen, dtype=np.int64)[kept]
    return features, weights[kept] / dictionary.strengths.cpu().numpy()[features]
