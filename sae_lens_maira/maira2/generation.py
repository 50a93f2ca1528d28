"""What generation asks of a model whose rows have different numbers of images, and a limited number of positions.

The images of all rows stand in one list, in the order of their placeholders. Where several answers are wanted,
transformers would repeat such a list image by image: frontal, frontal, lateral, lateral. Two answers to one prompt read
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
    """How many images each row has, by its placeholders.

    Args:
        config: the model's ``Maira2Config``.
        input_ids: with placeholders; None or empty where embeddings are given.
        inputs_embeds: with the placeholder's embedding.
        embeddings: of all tokens, (d_vocab, d_model).
    """
    if input_ids is not None and input_ids.shape[1] > 0:
        is_image = input_ids == config.image_token_index
    elif inputs_embeds is not None:
        is_image = (inputs_embeds == embeddings[config.image_token_index]).all(dim=-1)
    else:
        return []
    return (is_image.sum(dim=1) // config.n_image_tokens).tolist()


def repeated_order(n_images: list[int], n_found: int, n_times: int) -> list[int]:
    """Which image stands where, after the images of each row were repeated as a group.

    Args:
        n_images: of each row.
        n_found: images that there are.
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
    """Refuse what is longer than the model's positions, without looking at values on the device.

    Args:
        config: the model's ``Maira2Config``.
        tokens: ids or embeddings that are to be run, if any.
        cache: of what was run before; None if there is none.

    Raises:
        PromptError: naming both lengths.
    """
    if tokens is None:
        return
    n_cached = 0 if cache is None else cache.get_seq_length()
    if cache is not None and isinstance(n_cached, Tensor):
        # A cache of fixed size counts on the device, where looking would stall it and break a compiled graph.
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
