"""Files: atomic writes, checksums and locks; and the location of the on-disk cache."""

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
    """``$SAE_LENS_MAIRA_CACHE``, or ``~/.cache/sae-lens-maira``: holds rows and unpacked images."""
    return Path(os.environ.get("SAE_LENS_MAIRA_CACHE", "~/.cache/sae-lens-maira")).expanduser()


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that replaces ``path`` once it is completely on disk; if that fails, nothing is left."""
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
    """Write a text file atomically: completely or not at all."""
    with replacing(path) as file:
        file.write(text.encode())


def sync_folder(path: Path) -> None:
    """Sync a folder to disk, so that a rename in it survives a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_file(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def to_json(value: Any) -> str:
    """JSON text, in the layout of all of this package's files."""
    return json.dumps(value, sort_keys=True, indent=1) + "\n"


@contextmanager
def exclusive(lock_path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock between processes; it is released when this process ends, even if it is killed.

    Args:
        lock_path: the lock's file, which is not removed.
        wait: wait until the lock is free; if False, yield False at once when it is taken.
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
