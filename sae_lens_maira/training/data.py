"""Training data from a cache of activations in place of the model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens.util import str_to_dtype

from sae_lens_maira.activations.header import check_cache_fits
from sae_lens_maira.activations.manifest import read_skipped
from sae_lens_maira.activations.provider import CachedActivations, TokenSelection
from sae_lens_maira.activations.read import ActivationCache
from sae_lens_maira.data.study import TokenKind
from sae_lens_maira.errors import CacheError, CacheMismatch

if TYPE_CHECKING:
    from datasets import Dataset

    from sae_lens_maira.hooked import HookedMaira2
    from sae_lens_maira.training.config import TrainConfig

logger = logging.getLogger(__name__)


def open_cached(config: TrainConfig, model: HookedMaira2, runner: Any) -> tuple[CachedActivations, Dataset]:
    """The data provider of a run, and the rows of the studies that are held out of it.

    Args:
        config: names the cache.
        model: with the run's studies and policy, which the cache must have been made with.
        runner: SAE-Lens's configuration of the run.

    Raises:
        CacheMismatch: the cache was made with something else.
        CacheError: it is damaged, or has no such hook point.
    """
    assert config.activations.cache is not None
    cache = ActivationCache.open(Path(config.activations.cache))
    check_cache_fits(cache.path, cache.identity, model)
    cut_at = cache.identity["context_size"]
    if cut_at is not None and cut_at < config.context_size:
        raise CacheMismatch(
            f"The cache '{cache.path}' holds {cut_at} tokens a study at the most, but context_size is "
            f"{config.context_size}."
        )
    n_studies = len(model.studies)
    n_held_out = min(config.source.n_held_out, n_studies // 2)
    kinds = config.activations.kinds
    provider = CachedActivations(
        cache,
        config.hook_name,
        batch_size=runner.train_batch_size_tokens,
        selection=TokenSelection(
            kinds=None if kinds is None else tuple(TokenKind[name.upper()] for name in kinds),
            n_studies=n_studies - n_held_out,
            context_size=config.context_size,
            study_token=config.policy.image_tokens != "none",
            max_norm_multiple=config.max_norm_multiple,
        ),
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
    return provider, _held_out_rows(cache, model, n_held_out, config.context_size)


def _held_out_rows(cache: ActivationCache, model: HookedMaira2, n_held_out: int, context_size: int) -> Dataset:
    from datasets import Dataset

    n_studies = len(model.studies)
    first_unit = (n_studies - n_held_out) // cache.identity["unit_size"]
    skipped = {study.index for study in read_skipped(cache.path, range(first_unit, cache.n_units))}
    indices = [index for index in range(n_studies - n_held_out, n_studies) if index not in skipped]
    if not indices:
        raise CacheError(
            f"The cache '{cache.path}' has none of the studies that are held out; raise source.n_held_out."
        )
    return Dataset.from_dict({"tokens": model.reader.rows(indices, context_size).numpy()})
