"""Files: written whole or not at all, named by their checksums; and the folder of what can be made again."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout


def default_cache_path() -> Path:
    """``$SAE_LENS_MAIRA_CACHE``, or ``~/.cache/sae-lens-maira``: rows, and images that were unpacked."""
    return Path(os.environ.get("SAE_LENS_MAIRA_CACHE", "~/.cache/sae-lens-maira")).expanduser()


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path`` once it is on disk as a whole; nothing is left if that fails."""
    unfinished = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace a text file as a whole."""
    with replacing(path) as file:
        file.write(text.encode())


def sync_folder(path: Path) -> None:
    """Make a rename last through a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_file(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def to_json(value: Any) -> str:
    """The one way in which JSON is written here."""
    return json.dumps(value, sort_keys=True, indent=1) + "\n"


def from_json(text: str | bytes) -> Any:
    """Values of JSON that comes from elsewhere.

    Raises:
        ValueError: it is no JSON, is not UTF-8, names a key twice, or is nested deeper than can be read.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(name for index, (name, _) in enumerate(pairs) if name in dict(pairs[:index]))
        raise ValueError(f"it names {twice!r} twice")
    return values


@contextmanager
def exclusive(lock_path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock that other processes ask for too; it is free again when this process ends, however it ends.

    Args:
        lock_path: the lock's file, which stays where it is.
        wait: until the lock is free; otherwise yield False at once if it is not.
    """
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_path)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
