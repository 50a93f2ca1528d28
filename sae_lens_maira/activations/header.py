"""A cache's header: what determines its values, written when the cache is made and checked when it is used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from sae_lens_maira.activations.config import WriteConfig
from sae_lens_maira.activations.format import FORMAT, HEADER_NAME, VERSION, read_json
from sae_lens_maira.errors import CacheError, CacheMismatch, CacheNotFound, quoted
from sae_lens_maira.hooked.identity import describe_model
from sae_lens_maira.settings import DtypeName

if TYPE_CHECKING:
    from sae_lens_maira.hooked import HookedVisionLanguageModel


def make_header(model: HookedVisionLanguageModel, settings: WriteConfig, about: Mapping[str, Any]) -> dict[str, Any]:
    """The header of a cache of a model's studies.

    Args:
        model: a model bound to studies and a token policy.
        settings: how to cache.
        about: further notes for people, which affect nothing.
    """
    described = describe_model(model)
    identity = {
        **_model_identity(model, described),
        **_source_identity(model),
        "hook_names": list(settings.hook_names),
        "dtype": settings.dtype,
        "context_size": settings.context_size,
        "max_length": model.cfg.n_ctx,
        "unit_size": settings.unit_size,
        "max_batch_tokens": settings.max_batch_tokens,
    }
    noted = {"model": described["model"], "revision": described["revision"], **about}
    return {"format": FORMAT, "version": VERSION, "identity": identity, "about": noted}


def read_header(path: Path) -> dict[str, Any]:
    """Read the header of the cache in a folder.

    Raises:
        CacheNotFound: there is no cache.
        CacheError: the header is damaged.
    """
    try:
        header = read_json(path / HEADER_NAME)
    except FileNotFoundError:
        raise CacheNotFound(
            f"There is no cache of activations in '{path}'; make one with `sae-lens-maira cache`."
        ) from None
    if not isinstance(header.get("identity"), dict) or not isinstance(header.get("about"), dict):
        raise CacheError(f"'{path / HEADER_NAME}' is damaged: identity or about is missing.")
    _check_identity(path / HEADER_NAME, header["identity"])
    return header


def _check_identity(path: Path, identity: Mapping[str, Any]) -> None:
    """Refuse what a cache cannot be read with.

    Raises:
        CacheError: naming the entry.
    """
    hook_names = identity.get("hook_names")
    sound = {name: _is_count(identity.get(name)) for name in ("n_studies", "unit_size", "d_in", "context_size")}
    sound["context_size"] |= identity.get("context_size") is None
    sound["dtype"] = identity.get("dtype") in get_args(DtypeName)
    is_list = isinstance(hook_names, list) and all(isinstance(name, str) for name in hook_names)
    sound["hook_names"] = is_list and bool(hook_names)
    sound["source"] = isinstance(identity.get("source"), Mapping)
    for name, is_sound in sound.items():
        if not is_sound:
            raise CacheError(f"'{path}' is damaged: {name} is {quoted(identity.get(name))}; make the cache again.")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def check_same(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Compare a cache's identity with the expected one, in the entries that the expected one has.

    Args:
        path: the cache's folder, for the error message.
        theirs: the cache's identity.
        ours: the expected identity, or a part of it.

    Raises:
        CacheMismatch: the message names what differs.
    """
    left, right = _flat(theirs), _flat(ours)
    differences = [
        f"{name} ({left.get(name)}, here {value})" for name, value in right.items() if left.get(name) != value
    ]
    if differences:
        raise CacheMismatch(f"The cache '{path}' was made with another {', another '.join(differences)}.")


def check_cache_fits(path: Path, identity: Mapping[str, Any], model: HookedVisionLanguageModel) -> None:
    """Check that a cache was made with a model, its token policy and its studies.

    Raises:
        CacheMismatch: the message names what differs.
    """
    check_same(path, identity, {**_model_identity(model, describe_model(model)), **_source_identity(model)})


def _source_identity(model: HookedVisionLanguageModel) -> dict[str, Any]:
    return {"n_studies": len(model.studies), "source": model.studies.description}


def _model_identity(model: HookedVisionLanguageModel, described: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "weights_fingerprint": described["weights_fingerprint"],
        "model_dtype": str(model.cfg.dtype).removeprefix("torch."),
        "processor_fingerprint": model.vlm.processor.fingerprint(),
        "token_policy": described["token_policy"],
        "d_in": model.cfg.d_model,
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat
