"""Generation: images repeated row by row, and a check of the input's length.

The images of all rows are one list, in the order of their placeholders. For several answers per prompt, transformers
would repeat that list image by image: frontal, frontal, lateral, lateral. Two answers to one prompt need it row by row:
frontal, lateral, frontal, lateral.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_maira.errors import PromptError


def images_per_row(
    config: Any,
    input_ids: Int[Tensor, "batch _"] | None,
    inputs_embeds: Float[Tensor, "batch sequence d_model"] | None,
    embeddings: Any,
) -> list[int]:
    """The number of images in each row, counted by its placeholders.

    Args:
        config: the model's ``Maira2Config``.
        input_ids: token ids with placeholders; None or empty if embeddings are given.
        inputs_embeds: token embeddings, among them the placeholder's.
        embeddings: the embedding matrix, (d_vocab, d_model).
    """
    if input_ids is not None and input_ids.shape[1] > 0:
        is_image = input_ids == config.image_token_index
    elif inputs_embeds is not None:
        is_image = (inputs_embeds == embeddings[config.image_token_index]).all(dim=-1)
    else:
        return []
    return (is_image.sum(dim=1) // config.n_image_tokens).tolist()


def repeated_order(n_images: list[int], n_found: int, n_times: int) -> list[int]:
    """Indices that repeat the images of each row as a group.

    Args:
        n_images: images per row.
        n_found: images that were given.
        n_times: answers per row.

    Raises:
        PromptError: there are more or fewer images than placeholders.
    """
    if sum(n_images) != n_found:
        raise PromptError(f"The prompts have placeholders for {sum(n_images)} images, but there are {n_found}.")
    order: list[int] = []
    start = 0
    for n_own in n_images:
        order += list(range(start, start + n_own)) * n_times
        start += n_own
    return order


def check_length(config: Any, tokens: Tensor | None, cache: Any) -> None:
    """Refuse inputs longer than the model's positions, without reading values from the device.

    Args:
        config: the model's ``Maira2Config``.
        tokens: ids or embeddings to run, if any.
        cache: the key-value cache of earlier tokens, if any.

    Raises:
        PromptError: the input is too long; the message has both lengths.
    """
    if tokens is None:
        return
    n_cached = 0 if cache is None else cache.get_seq_length()
    if cache is not None and isinstance(n_cached, Tensor):
        # A static cache keeps its length on the device; reading it would stall the device and break a compiled graph.
        n_cached = 0
        n_places = cache.get_max_length() if hasattr(cache, "get_max_length") else cache.get_max_cache_shape()
        if n_places > config.n_positions:
            raise PromptError(
                f"The cache has room for {n_places} tokens but the model has {config.n_positions} positions; "
                "ask for fewer new tokens, or make a smaller cache."
            )
    n_tokens = tokens.shape[1] + n_cached
    if n_tokens > config.n_positions:
        raise PromptError(
            f"The input has {n_tokens} tokens but the model has {config.n_positions} positions; "
            "shorten a section or the prior report, or leave out an image."
        )
