"""Forward passes from embeddings: the same images under many texts, or many versions of an image under one text.

Rows name a study and nothing else, so they cannot say "this text with that image". Here a prompt is a sequence of
embeddings, made of a study's text and of any images' embeddings:

1. :func:`embed_images` runs the vision tower once per image.
2. :func:`embed_prompt` places embeddings at the placeholders of an encoded prompt.
3. :func:`read_site` runs the language model up to a hook point and stops there, with gradients if they are wanted.
4. :class:`SharedPrefix` runs the part of a prompt that several prompts share once, and then only what differs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_maira.data.study import IMAGE_KINDS, VIEWS, Study, TokenKind, View
from sae_lens_maira.errors import HookPointError
from sae_lens_maira.hooked.points import hidden_states
from sae_lens_maira.vlm import BLOCK_SITES, TokenIds, VisionLanguageModel

_VIEW_OF_KIND: dict[TokenKind, View] = dict(zip(IMAGE_KINDS, VIEWS, strict=True))


class _Stop(Exception):
    """Ends a forward pass early."""


@dataclass(frozen=True)
class Place:
    """A hook point in the language model.

    Args:
        layer: of the decoder.
        point: one of :data:`~sae_lens_maira.vlm.BLOCK_SITES`.
    """

    layer: int
    point: str

    @classmethod
    def of(cls, hook_name: str, n_layers: int) -> Place:
        """Read a name such as ``blocks.15.hook_resid_post``.

        Raises:
            HookPointError: the model has no such hook point in a block.
        """
        parts = hook_name.split(".")
        if len(parts) == 3 and parts[0] == "blocks" and parts[1].isdecimal() and parts[2] in BLOCK_SITES:
            place = cls(int(parts[1]), parts[2])
            if place.layer < n_layers:
                return place
        raise HookPointError(f"'{hook_name}' is no hook point of one of the {n_layers} blocks of the model.")


@dataclass(frozen=True)
class EmbeddedPrompt:
    """One prompt as embeddings, without padding.

    Args:
        embeddings: one per token.
        kinds: kind of each token.
    """

    embeddings: Float[Tensor, "n_tokens d_model"]
    kinds: Int[Tensor, " n_tokens"]

    def positions(self, *kinds: TokenKind) -> Int[Tensor, " n_found"]:
        """Positions of the tokens of some kinds, in order."""
        wanted = torch.tensor([int(kind) for kind in kinds], device=self.kinds.device)
        return torch.isin(self.kinds, wanted).nonzero()[:, 0]


def embed_images(
    vlm: VisionLanguageModel, studies: Sequence[Study], images: Sequence[Mapping[str, Tensor]] | None = None
) -> list[dict[View, Float[Tensor, "n_image_tokens d_model"]]]:
    """Embeddings of all images of some studies, in one pass through the vision tower, with gradients if the inputs want
    them.

    Args:
        vlm: the model.
        studies: whose images are opened.
        images: image inputs of each study that replace its own, such as changed pixels.
    """
    processor, root = vlm.processor, vlm.module
    inputs = [processor.images(study) for study in studies] if images is None else list(images)
    ids = [processor.encode(study, "prompt")[0] for study in studies]
    batch = {name: tensor.to(root.device) for name, tensor in processor.collate(ids, inputs, "right").items()}
    wants_gradients = any(tensor.requires_grad for tensor in batch.values())
    with (
        torch.set_grad_enabled(wants_gradients),
        _stop_at(vlm.image_embeddings(root), "output") as found,
        _until_stopped(),
    ):
        root(**batch, use_cache=False, logits_to_keep=1)
    embedded = iter(found[0])
    return [{view: next(embedded) for view in study.images} for study in studies]


def blank_images(vlm: VisionLanguageModel, study: Study) -> dict[str, Tensor]:
    """Image inputs of a study with every pixel at the mean gray.

    MAIRA-2's pipeline stretches each image to its own darkest and brightest pixel, so a constant image has no meaning
    before it. After normalization the mean gray is 0.
    """
    return {name: torch.zeros_like(tensor) for name, tensor in vlm.processor.images(study).items()}


def embed_prompt(
    vlm: VisionLanguageModel,
    encoded: tuple[TokenIds, TokenIds],
    images: Mapping[View, Float[Tensor, "n_image_tokens d_model"]],
) -> EmbeddedPrompt:
    """Embed an encoded prompt, with the given embeddings at the placeholders of its images.

    Args:
        vlm: the model.
        encoded: token ids of the prompt, and the kind of each, as ``processor.encode`` returns them.
        images: embeddings of each image for which the prompt has placeholders.
    """
    device = vlm.module.device
    ids, kinds = (torch.as_tensor(values, device=device).long() for values in encoded)
    table: Any = vlm.module.get_input_embeddings()
    embeddings = table(ids)
    for kind, view in _VIEW_OF_KIND.items():
        at = (kinds == int(kind)).nonzero()[:, 0]
        if len(at):
            embeddings = embeddings.index_put((at,), images[view].to(embeddings.dtype))
    return EmbeddedPrompt(embeddings, kinds)


def read_site(
    vlm: VisionLanguageModel,
    place: Place,
    embeddings: Float[Tensor, "batch n_tokens d_model"],
    lengths: Sequence[int] | None = None,
    past: Any = None,
) -> Float[Tensor, "batch n_tokens d_site"]:
    """Run the language model up to a hook point, and return what it sees at all positions.

    Args:
        vlm: the model.
        place: the hook point.
        embeddings: prompts, padded on the right.
        lengths: number of tokens of each prompt; all are of full length if None.
        past: keys and values of earlier tokens; those of ``embeddings`` are added to it.
    """
    root: Any = vlm.module
    with _stop_at(*_module_at(vlm, place)) as found, _until_stopped():
        root(
            inputs_embeds=embeddings,
            attention_mask=_mask(embeddings, lengths, past),
            past_key_values=past,
            use_cache=past is not None,
            logits_to_keep=1,
        )
    return found[0]


def read_last(
    vlm: VisionLanguageModel, place: Place, embeddings: Float[Tensor, "batch n_tokens d_model"]
) -> Float[Tensor, "batch d_site"]:
    """What a hook point sees at the last token of prompts of equal length.

    The last token runs after the others, on their keys and values. So the others need no more of the last layer than
    these, and a backward pass leaves out the rest as well.
    """
    from transformers import DynamicCache

    past = DynamicCache()
    needs_mlp = place.point in ("hook_mlp_out", "hook_resid_post")
    read_site(vlm, Place(place.layer, "hook_attn_out") if needs_mlp else place, embeddings[:, :-1], past=past)
    return read_site(vlm, place, embeddings[:, -1:], past=past)[:, 0]


class SharedPrefix:
    """The first tokens of several prompts, run once up to a hook point; later passes continue from it.

    Args:
        vlm: the model.
        place: the hook point.
        embeddings: of the shared tokens.
    """

    def __init__(self, vlm: VisionLanguageModel, place: Place, embeddings: Float[Tensor, "n_shared d_model"]) -> None:
        from transformers import DynamicCache

        self.vlm, self.place, self.n_tokens = vlm, place, len(embeddings)
        self._cache = DynamicCache()
        self.shared = read_site(vlm, place, embeddings[None], past=self._cache)[0]
        """What the hook point sees at the shared tokens, of shape (n_shared, d_site)."""

    def continue_with(
        self, embeddings: Float[Tensor, "batch n_tokens d_model"], lengths: Sequence[int] | None = None
    ) -> Float[Tensor, "batch n_tokens d_site"]:
        """What the hook point sees at the tokens after the prefix, for several continuations padded on the right."""
        past: Any = copy.deepcopy(self._cache)
        past.batch_repeat_interleave(len(embeddings))
        return read_site(self.vlm, self.place, embeddings, lengths, past)


def edited_logits(
    vlm: VisionLanguageModel,
    place: Place,
    embeddings: Float[Tensor, "n_tokens d_model"],
    deltas: Float[Tensor, "n_edits d_site"],
) -> Float[Tensor, "n_edits d_vocab"]:
    """The logits after a prompt, for several edits of a hook point at its last token.

    The other tokens run once; only the last one runs for every edit, on their keys and values.

    Args:
        vlm: the model.
        place: the hook point.
        embeddings: the prompt.
        deltas: what each edit adds; zeros for none.
    """
    from transformers import DynamicCache

    root: Any = vlm.module
    past: Any = DynamicCache()
    root(inputs_embeds=embeddings[None, :-1], past_key_values=past, use_cache=True, logits_to_keep=1)
    past.batch_repeat_interleave(len(deltas))
    last = embeddings[None, -1:].expand(len(deltas), -1, -1)
    with _hook(*_module_at(vlm, place), lambda hidden: hidden + deltas[:, None].to(hidden.dtype)):
        output = root(
            inputs_embeds=last,
            attention_mask=_mask(last, None, past),
            past_key_values=past,
            use_cache=True,
            logits_to_keep=1,
        )
    return output.logits[:, -1]


def _module_at(vlm: VisionLanguageModel, place: Place) -> tuple[Any, str]:
    """The module of a hook point, and whether its input or its output is meant."""
    site = BLOCK_SITES[place.point]
    layer: Any = vlm.layers(vlm.module)[place.layer]
    return (getattr(layer, site.submodule) if site.submodule else layer), site.side


@contextmanager
def _hook(module: Any, side: str, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace a module's input or output inside the ``with`` block."""

    def on_input(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    def on_output(_module: Any, _args: Any, output: Any) -> Any:
        changed = change(hidden_states(output))
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = (
        module.register_forward_pre_hook(on_input, with_kwargs=True)
        if side == "input"
        else module.register_forward_hook(on_output)
    )
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _stop_at(module: Any, side: str) -> Iterator[list[Tensor]]:
    """Keep a module's input or output, and end the forward pass there."""
    found: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        found.append(value)
        raise _Stop

    with _hook(module, side, keep):
        yield found


@contextmanager
def _until_stopped() -> Iterator[None]:
    try:
        yield
    except _Stop:
        return
    raise RuntimeError("The forward pass ended without reaching the module where it should have stopped.")


def _mask(embeddings: Tensor, lengths: Sequence[int] | None, past: Any) -> Tensor:
    n_rows, n_tokens = embeddings.shape[:2]
    n_past = 0 if past is None else int(past.get_seq_length())
    sizes = torch.tensor([n_tokens] * n_rows if lengths is None else list(lengths), device=embeddings.device)
    return (torch.arange(n_past + n_tokens, device=embeddings.device) < n_past + sizes[:, None]).long()
