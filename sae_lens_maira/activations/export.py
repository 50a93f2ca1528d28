"""Exports a cache to the format that SAE-Lens reads itself, with ``use_cached_activations=True``.

SAE-Lens wants a dataset on disk whose rows are contexts of one length: a column with the hook point's name, of shape
(context_size, d_in), and a column ``token_ids``. Rows of studies differ in length, and SAE-Lens would train on padding.
So the kept tokens of all studies are concatenated and cut into contexts. Every context is full, a study may span
several, and the last tokens are left out if they do not fill a context. Training is not affected, because an SAE reads
one token at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_maira.activations.read import ActivationCache
from sae_lens_maira.activations.selection import TokenSelection
from sae_lens_maira.errors import CacheError
from sae_lens_maira.files import unfinished_folder, unfinished_path

logger = logging.getLogger(__name__)


def export_for_sae_lens(
    cache: ActivationCache,
    hook_name: str,
    path: Path,
    *,
    context_size: int = 128,
    selection: TokenSelection | None = None,
    show_progress: bool = True,
) -> int:
    """Write a dataset for ``LanguageModelSAERunnerConfig(use_cached_activations=True, cached_activations_path=path)``.

    Args:
        cache: a whole cache.
        hook_name: one of its hook points.
        path: a new folder.
        context_size: tokens per context; the runner's must be the same.
        selection: which tokens are written; all if None.
        show_progress: whether to show a progress bar.

    Returns:
        the number of contexts. The log says how many tokens at the end did not fill a context and were left out.

    Raises:
        CacheError: the folder is not empty, or the cache lacks the hook point or has fewer tokens than one context.
    """
    from datasets import Array2D, Dataset, Features, Value
    from datasets import Sequence as SequenceFeature
    from datasets.arrow_writer import ArrowWriter

    cache.check_hook_name(hook_name)
    if unfinished_path(path).exists():
        with unfinished_folder(path, CacheError):
            pass  # Removes what a killed export left.
    if path.exists() and any(path.iterdir()):
        raise CacheError(f"'{path}' is not empty; choose another folder.")
    selection = selection or TokenSelection()
    n_tokens = sum(int(selection.of(block).sum()) for block in cache.blocks(hook_name))
    n_contexts = n_tokens // context_size
    if not n_contexts:
        raise CacheError(
            f"The cache '{cache.path}' has {n_tokens} tokens to export, fewer than a context of {context_size}."
        )
    # Arrow has no bfloat16.
    dtype = torch.float32 if cache.dtype == torch.bfloat16 else cache.dtype
    features = Features(
        {
            hook_name: Array2D((context_size, cache.d_in), str(dtype).removeprefix("torch.")),
            "token_ids": SequenceFeature(Value("int32"), length=context_size),
        }
    )
    with unfinished_folder(path, CacheError) as unfinished:
        # One row per group: SAE-Lens reads slices of rows, and Arrow reads whole groups.
        (unfinished / "rows").mkdir()
        with ArrowWriter(path=str(unfinished / "rows" / "all.arrow"), features=features, writer_batch_size=1) as writer:
            contexts = _contexts(cache, hook_name, context_size, selection)
            for values, token_ids in tqdm(contexts, total=n_contexts, desc="exporting", disable=not show_progress):
                writer.write({hook_name: values.to(dtype).numpy(), "token_ids": token_ids.int().numpy()})
            writer.finalize()
        dataset = Dataset.from_file(str(unfinished / "rows" / "all.arrow"))
        dataset.save_to_disk(str(unfinished / "dataset"), num_shards=1)
        del dataset
        (unfinished / "dataset").rename(path)  # an empty folder gives way
    logger.info(
        "'%s': %d contexts of %d tokens for SAE-Lens; the last %d tokens do not fill a context and are left out.",
        path,
        n_contexts,
        context_size,
        n_tokens % context_size,
    )
    return n_contexts


def _contexts(
    cache: ActivationCache, hook_name: str, context_size: int, selection: TokenSelection
) -> Iterator[tuple[Tensor, Tensor]]:
    left: tuple[Tensor, Tensor] | None = None
    for block in cache.blocks(hook_name):
        chosen = selection.of(block)
        values, token_ids = block.activations[hook_name][chosen], block.token_ids[chosen]
        if left is not None:
            values, token_ids = torch.cat([left[0], values]), torch.cat([left[1], token_ids])
        for start in range(0, len(values) - context_size + 1, context_size):
            yield values[start : start + context_size], token_ids[start : start + context_size]
        n_left = len(values) % context_size
        left = (values[len(values) - n_left :], token_ids[len(values) - n_left :])
