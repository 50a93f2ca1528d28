"""What a run trains on: rows for the live model, or a cache of activations; both select tokens by the same rule."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens.util import str_to_dtype

from sae_lens_maira.activations.block import Block
from sae_lens_maira.activations.header import check_cache_fits
from sae_lens_maira.activations.live import LiveActivations
from sae_lens_maira.activations.manifest import read_skipped
from sae_lens_maira.activations.norms import measure_norms
from sae_lens_maira.activations.provider import CachedActivations, CachedMultiHookActivations
from sae_lens_maira.activations.read import ActivationCache
from sae_lens_maira.activations.selection import TokenSelection, measured_studies, with_norm_limits
from sae_lens_maira.activations.stream import until_study
from sae_lens_maira.data.study import TokenKind
from sae_lens_maira.errors import CacheError, CacheMismatch
from sae_lens_maira.training.skipped import usable_studies

if TYPE_CHECKING:
    from datasets import Dataset

    from sae_lens_maira.hooked import HookedVisionLanguageModel
    from sae_lens_maira.training.config import TrainConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """The data for training and for scores.

    Args:
        rows: the rows for SAE-Lens's store. Without a cache these are the rows to train on; with a cache, held-out rows
            for SAE-Lens's own evaluations during training.
        held_out: rows of the studies that are held out of training.
        selection: which tokens are trained on.
        kinds: column ``kinds`` of the rows of all studies, by study; None with a cache.
        provider: cached activations; None without a cache.
        max_skipped_share: largest share of the studies whose images may be unusable.
    """

    rows: Dataset
    held_out: Dataset
    selection: TokenSelection
    kinds: Dataset | None = None
    provider: CachedActivations | CachedMultiHookActivations | None = None
    max_skipped_share: float = 0.0


def training_data(
    config: TrainConfig, model: HookedVisionLanguageModel, hook_names: str | Sequence[str], runner: Any
) -> TrainingData:
    """The data of a run, from the live model or from the cache that the configuration names.

    Args:
        config: the run's configuration.
        model: bound to the run's studies and policy.
        hook_names: the hook point of one SAE, or the hook points of several as a sequence.
        runner: SAE-Lens's configuration of the run.

    Raises:
        CacheMismatch: the cache was made with another model, source or policy.
        CacheError: the cache is damaged, or has no such hook point.
        TooManySkipped: too many of the studies to score on have images that cannot be used.
    """
    selection = token_selection(config, len(model.studies))
    n_held_out = len(model.studies) - (selection.n_studies or 0)
    if n_held_out < config.source.n_held_out:
        logger.warning(
            "source.n_held_out is %d, but only %d of %d studies are held out, as at least half of them are trained on.",
            config.source.n_held_out,
            n_held_out,
            len(model.studies),
        )
    if config.activations.cache is None:
        return _live_data(config, model, hook_names, selection, runner)
    return _cached_data(config, model, hook_names, selection, runner)


def token_selection(config: TrainConfig, n_studies: int) -> TokenSelection:
    """The tokens that a configuration trains on, before norms are limited.

    Args:
        config: the run's configuration.
        n_studies: number of studies of the source; the last ones are held out, at most half of all.
    """
    kinds = config.activations.kinds
    return TokenSelection(
        kinds=None if kinds is None else tuple(TokenKind[name.upper()] for name in kinds),
        n_studies=n_studies - min(config.source.n_held_out, n_studies // 2),
        context_size=config.context_size,
        study_token=config.policy.image_tokens != "none",
    )


def _live_data(
    config: TrainConfig,
    model: HookedVisionLanguageModel,
    hook_names: str | Sequence[str],
    selection: TokenSelection,
    runner: Any,
) -> TrainingData:
    rows = model.rows(config.context_size)
    logger.info("Rows: %s", rows.describe())
    assert selection.n_studies is not None
    tokens = rows.dataset.select_columns(["tokens"])
    stream = LiveActivations(
        model,
        _names(hook_names),
        indices=range(measured_studies(selection).n_studies or 0),
        context_size=config.context_size,
    )
    return TrainingData(
        rows=tokens.select(range(selection.n_studies)).shuffle(seed=config.shuffle_seed),
        held_out=tokens.select(_scored(config, model, range(selection.n_studies, len(tokens)), runner)),
        selection=_limit_norms(config, selection, stream, hook_names),
        kinds=rows.dataset.select_columns(["kinds"]),
        max_skipped_share=config.max_skipped_share,
    )


def _cached_data(
    config: TrainConfig,
    model: HookedVisionLanguageModel,
    hook_names: str | Sequence[str],
    selection: TokenSelection,
    runner: Any,
) -> TrainingData:
    from datasets import Dataset

    assert config.activations.cache is not None
    cache = ActivationCache.open(Path(config.activations.cache))
    check_cache_fits(cache.path, cache.identity, model)
    cut_at = cache.identity["context_size"]
    if cut_at is not None and cut_at < config.context_size:
        raise CacheMismatch(
            f"The cache '{cache.path}' holds {cut_at} tokens per study at most, but context_size is "
            f"{config.context_size}."
        )
    selection = _limit_norms(config, selection, cache.blocks(*_names(hook_names)), hook_names)
    provider = (CachedActivations if isinstance(hook_names, str) else CachedMultiHookActivations)(
        cache,
        hook_names,
        batch_size=runner.train_batch_size_tokens,
        selection=selection,
        seed=config.shuffle_seed,
        dtype=str_to_dtype(runner.dtype),
        device=runner.act_store_device or "cpu",
        run_length=config.activations.run_length,
    )
    logger.info(
        "Training on %d cached tokens of %d; an epoch is %d batches.",
        provider.n_tokens,
        cache.n_tokens,
        provider.n_tokens // provider.batch_size,
    )
    usable = _scored(config, model, _held_out(cache, len(model.studies), selection.n_studies or 0), runner)
    held_out = Dataset.from_dict({"tokens": model.reader.rows(usable, config.context_size).numpy()})
    return TrainingData(
        rows=held_out,
        held_out=held_out,
        selection=selection,
        provider=provider,
        max_skipped_share=config.max_skipped_share,
    )


def _scored(config: TrainConfig, model: HookedVisionLanguageModel, held_out: Sequence[int], runner: Any) -> list[int]:
    """The held-out studies that are scored after training: the first ones whose images can be used."""
    n_wanted = config.n_eval_batches * runner.store_batch_size_prompts
    return usable_studies(model, held_out, n_wanted, config.max_skipped_share)


def _limit_norms(
    config: TrainConfig, selection: TokenSelection, stream: Iterable[Block], hook_names: str | Sequence[str]
) -> TokenSelection:
    """Log the norms of the first studies, and limit norms if the configuration asks for it."""
    few = measured_studies(selection)
    blocks = list(until_study(stream, few.n_studies or 0))
    for norms in measure_norms(blocks, selection=few).values():
        logger.info("Norms at %s", norms.describe())
    if config.max_norm_multiple is None:
        return selection
    return with_norm_limits(selection, blocks, _names(hook_names), config.max_norm_multiple)


def _names(hook_names: str | Sequence[str]) -> Sequence[str]:
    return [hook_names] if isinstance(hook_names, str) else hook_names


def _held_out(cache: ActivationCache, n_studies: int, n_training: int) -> list[int]:
    """The studies after the training studies that have cached activations."""
    first_unit = n_training // cache.identity["unit_size"]
    skipped = {study.index for study in read_skipped(cache.path, range(first_unit, cache.n_units))}
    indices = [index for index in range(n_training, n_studies) if index not in skipped]
    if not indices:
        raise CacheError(
            f"The cache '{cache.path}' has none of the studies that are held out; raise source.n_held_out."
        )
    return indices
