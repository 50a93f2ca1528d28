"""Errors of the Hugging Face Hub's client, in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sae_lens_maira.errors import SaeFormatError, UserError

_LIBRARIES = {"httpx", "httpx2", "huggingface_hub", "requests"}


@contextmanager
def clear_hub_errors(repo_id: str) -> Iterator[None]:
    """Turn errors of the Hub's client into one sentence.

    Raises:
        SaeFormatError: the repository cannot be read or written.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if _LIBRARIES.isdisjoint(kind.__module__.partition(".")[0] for kind in type(error).__mro__):
            raise
        reason = " ".join(str(error).split())
        raise SaeFormatError(
            f"The repository '{repo_id}' cannot be reached on the Hub ({reason}); check its name and the network, or "
            "log in with `hf auth login`."
        ) from error
