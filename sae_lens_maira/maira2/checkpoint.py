"""Checks for loading a checkpoint; each error says in one sentence what is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open

from sae_lens_maira.errors import CheckpointError
from sae_lens_maira.files import from_json


@contextmanager
def clear_loading_errors(source: Any) -> Iterator[None]:
    """Turn a loader's errors into one sentence each.

    Args:
        source: the folder or Hub id that the user asked to load.
    """
    try:
        yield
    except Exception as error:
        causes = list(_causes(error))
        if any(isinstance(cause, GatedRepoError) for cause in causes):
            raise CheckpointError(
                f"No access to the gated repository '{source}': accept its license at https://huggingface.co/{source}, "
                "then log in with `hf auth login` or pass token=...."
            ) from error
        if any(isinstance(cause, (RepositoryNotFoundError, HFValidationError)) for cause in causes):
            raise CheckpointError(
                f"'{source}' is neither a folder here nor a repository on the Hub that you can read; check the name, "
                "or log in with `hf auth login` if it is private."
            ) from error
        if any(isinstance(cause, SafetensorError) for cause in causes):
            raise CheckpointError(
                f"A safetensors file of '{source}' is damaged or cut short ({error}); fetch the checkpoint again."
            ) from error
        if isinstance(error, OSError) and not isinstance(error, CheckpointError):
            reason = " ".join(str(error).split())
            raise CheckpointError(f"'{source}' cannot be loaded from here or from the Hub: {reason}") from error
        raise


def check_folder(folder: Path) -> None:
    """Check that a folder holds a whole MAIRA-2 checkpoint, without reading any weights.

    Raises:
        CheckpointError: the checkpoint is incomplete or not MAIRA-2's; the message names the file or field.
    """
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise CheckpointError(f"'{folder}' is not a MAIRA-2 checkpoint: it has no config.json.")
    model_type = _read_json(config_path).get("model_type")
    if model_type != "maira2":
        raise CheckpointError(
            f"'{folder}' is not a MAIRA-2 checkpoint: config.json says model_type '{model_type}', not 'maira2'."
        )
    index_path = folder / "model.safetensors.index.json"
    if index_path.is_file():
        shards = set(_read_json(index_path).get("weight_map", {}).values())
        missing = sorted(shard for shard in shards if not (folder / shard).is_file())
        if missing:
            raise CheckpointError(
                f"'{folder}' lacks {len(missing)} of {len(shards)} shards ({', '.join(missing[:3])}); "
                "fetch the checkpoint again."
            )
    elif not (folder / "model.safetensors").is_file():
        raise CheckpointError(
            f"'{folder}' has neither model.safetensors nor model.safetensors.index.json; only safetensors are read."
        )


def check_processor_folder(folder: Path) -> None:
    """Check that a folder holds a processor's files.

    Raises:
        CheckpointError: files are missing; the message names them.
    """
    missing = [name for name in ("tokenizer.json", "preprocessor_config.json") if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"'{folder}' has no MAIRA-2 processor: {' and '.join(missing)} missing.")


def raise_if_not_exact(source: Any, info: Mapping[str, Any]) -> None:
    """Refuse a load that left a parameter unset or a tensor unused.

    Args:
        source: the folder or Hub id, for the message.
        info: transformers' loading info, with ``missing_keys``, ``unexpected_keys`` and ``mismatched_keys``.
    """
    problems = {
        "missing": info.get("missing_keys"),
        "left over": info.get("unexpected_keys"),
        "of another shape": info.get("mismatched_keys"),
    }
    found = [
        f"{len(keys)} {kind} ({', '.join(sorted(str(key) for key in keys)[:3])})"
        for kind, keys in problems.items()
        if keys
    ]
    if found:
        raise CheckpointError(f"The weights of '{source}' do not fit MAIRA-2: keys {'; '.join(found)}.")


def tensors_on_demand(paths: Iterable[str]) -> dict[str, Any]:
    """All tensors of safetensors files; each is read from disk whenever it is sliced, and not cached."""
    slices: dict[str, Any] = {}
    for path in paths:
        file = safe_open(path, framework="pt", device="cpu", backend="pread")
        slices |= {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    return slices


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = from_json(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"'{path}' is not valid JSON ({error}).") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"'{path}' does not hold a JSON object.")
    return content


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
