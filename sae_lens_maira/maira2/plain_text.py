"""Plain texts with image placeholders, as transformers' chats and pipelines pass them.

1. Each placeholder in a text stands for one image, in order; the images are a flat list or one list per text.
2. Each placeholder is repeated once per image token.

The sections of such a text are unknown, so its tokens have no kinds.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from typing import Any

from sae_lens_maira.data.study import find_unwritable
from sae_lens_maira.errors import ImageError, PromptError
from sae_lens_maira.maira2.images import ImageLike


def match_images(texts: Sequence[str], images: Any, placeholder: str) -> list[ImageLike]:
    """Check that texts and images belong together.

    Args:
        texts: texts with placeholders.
        images: one image, a list of images, or one list per text.
        placeholder: the image token, ``<image>``.

    Returns:
        all images, in the order of their placeholders.

    Raises:
        PromptError: there is no text, or there are more or fewer images than placeholders.
    """
    if not texts:
        raise PromptError("There is no text; give at least one.")
    for text in texts:
        if not isinstance(text, str):
            raise PromptError(f"A text is a {type(text).__name__}; expected a string.")
        if find_unwritable(text) is not None:
            raise PromptError("A text holds half of a surrogate pair, which is no character; remove it.")
    wanted = [text.count(placeholder) for text in texts]
    found = list(_flat(images))
    is_by_text = _is_list(images) and len(images) == len(texts) and all(map(_is_list, images))
    if is_by_text:
        for row, (n_wanted, own) in enumerate(zip(wanted, images, strict=True)):
            _check_number(f"Text {row}", n_wanted, len(list(_flat(own))), placeholder)
    _check_number("The text" if len(texts) == 1 else "All texts together", sum(wanted), len(found), placeholder)
    return [_decoded(image) for image in found]


def refuse_what_cannot_be_given(videos: Any, audio: Any, truncation: Any, return_tensors: Any) -> None:
    """Refuse arguments that other models' processors take.

    Raises:
        PromptError: an argument was given; the message names it.
    """
    for name, given in {"videos": videos, "audio": audio}.items():
        if given is not None:
            raise PromptError(f"MAIRA-2 takes no {name}; leave {name}= out.")
    if truncation not in (False, None, "do_not_truncate"):
        raise PromptError("A prompt cannot be truncated; shorten a section, or leave truncation= out.")
    if return_tensors not in ("pt", None):
        raise PromptError(f"The processor gives PyTorch tensors; leave return_tensors={return_tensors!r} out.")


def _check_number(what: str, n_wanted: int, n_found: int, placeholder: str) -> None:
    if n_wanted != n_found:
        verb = "has" if what.startswith(("Text", "The")) else "have"
        raise PromptError(f"{what} {verb} {n_wanted} placeholders {placeholder}, but there are {n_found} images.")


def _is_list(images: Any) -> bool:
    return isinstance(images, (list, tuple))


def _flat(images: Any) -> Iterator[Any]:
    if _is_list(images):
        for image in images:
            yield from _flat(image)
    elif images is not None:
        yield images


def _decoded(image: Any) -> ImageLike:
    """Decode an image given as a data URL, as chats allow, and refuse a web address."""
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        raise ImageError(f"The image '{image}' is a web address; download it and give the file's path.")
    if isinstance(image, str) and image.startswith("data:image/"):
        try:
            return base64.b64decode(image.partition(",")[2], validate=True)
        except (binascii.Error, ValueError) as error:
            raise ImageError(f"The image given as a data URL is not valid base64 ({error}).") from error
    return image
