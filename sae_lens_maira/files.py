"""Files: atomic writes, checksums and locks; and the location of the on-disk cache."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from sae_lens_maira.errors import UserError

MARKER = ".sae-lens-maira.json"
MARKER_VERSION = 1
_LOCK, _REPLACED = "lock", "replaced"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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


def mark(folder: Path, kind: str, **facts: Any) -> None:
    """Write down that this package made a folder, so that it may be replaced later: ``.sae-lens-maira.json``.

    Args:
        folder: that is complete.
        kind: what it is, such as ``gallery``.
        facts: further plain values; ``files`` are the paths of what was written, relative to the folder.
    """
    write_text(folder / MARKER, to_json({"kind": kind, "version": MARKER_VERSION, **facts}))


def read_mark(folder: Path, kind: str) -> dict[str, Any] | None:
    """What :func:`mark` wrote; None if the folder has no mark, or another kind's or version's."""
    try:
        found = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    is_ours = isinstance(found, dict) and (found.get("kind"), found.get("version")) == (kind, MARKER_VERSION)
    return found if is_ours else None


def list_files(folder: Path) -> list[str]:
    """Everything below a folder that is no folder itself, save the mark: sorted paths relative to it."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if (path.is_symlink() or not path.is_dir()) and path != folder / MARKER
    )


@contextmanager
def unfinished_folder(path: Path, error: type[UserError]) -> Iterator[Path]:
    """A folder beside another one, in which this process alone prepares what will be there; it is removed at the end.

    What a killed process left in it is removed first, or put back if it was about to be replaced. A full disk becomes
    one sentence.

    Args:
        path: the folder to prepare.
        error: to raise.

    Raises:
        UserError: ``path`` is a link or a mount point, another process prepares it, its place is taken, or there is no
            room.
    """
    if path.is_symlink() or path.is_mount():
        raise error(f"'{path}' is a link or a mount point, which cannot be replaced; give another folder.")
    unfinished = unfinished_path(path)
    if unfinished.is_dir() and read_mark(unfinished, "unfinished") is None and _foreign(unfinished):
        raise error(f"'{unfinished}' is in the way and was not written by this package; move it away.")
    with exclusive(unfinished / _LOCK, wait=False) as is_free:
        if not is_free:
            raise error(f"Another process is writing '{path}'; wait for its end, or choose another folder.")
        restore_replaced(path)
        _empty(unfinished)
        try:
            mark(unfinished, "unfinished")
            yield unfinished
        except Exception as problem:
            if not lacks_room(problem):
                raise
            raise error(f"'{path}' cannot be written, as the disk is full; make room and run it again.") from problem
        finally:
            restore_replaced(path)
            _empty(unfinished)
            shutil.rmtree(unfinished)


def _empty(unfinished: Path) -> None:
    """Remove everything but the lock and the mark, without which what is left would pass for someone else's."""
    for left in unfinished.iterdir():
        if left.name not in (_LOCK, MARKER):
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def _foreign(unfinished: Path) -> bool:
    """Whether a folder without a mark holds more than a process leaves that is killed before it wrote one."""
    return any(name != _LOCK and not name.startswith(f".{MARKER}.") for name in list_files(unfinished))


def lacks_room(error: BaseException) -> bool:
    """Whether an error says that a disk is full, or a file larger than is allowed; safetensors says it in words."""
    number = error.errno if isinstance(error, OSError) else None
    return number in _NO_ROOM or any(os.strerror(known) in str(error) for known in _NO_ROOM)


def reserve(path: Path, n_bytes: int) -> None:
    """Make a file of zeros that has its place on the disk.

    Raises:
        OSError: there is no room.
    """
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, n_bytes)
        else:
            for start in range(0, n_bytes, 1 << 22):
                file.write(bytes(min(1 << 22, n_bytes - start)))


def link_tree(source: Path, target: Path, without: Collection[str] = ()) -> None:
    """Make a folder with the same files as another, which are linked, or copied where the disk knows no links.

    Args:
        source: the folder.
        target: a new folder.
        without: names in ``source`` to leave out.
    """

    def link(file: str, copy: str) -> None:
        try:
            os.link(file, copy, follow_symlinks=False)
        except OSError:
            shutil.copy2(file, copy)

    is_top = str(source)
    shutil.copytree(
        source,
        target,
        symlinks=True,
        copy_function=link,
        ignore=lambda folder, _: list(without) if folder == is_top else [],
    )


def unfinished_path(path: Path) -> Path:
    """Where a folder is prepared."""
    place = path.absolute()
    return place.parent / f".{place.name}.unfinished"


def replace_folder(new: Path, path: Path) -> None:
    """Put a folder that was prepared in the place of another one; what goes wrong between leaves the old one there.

    Args:
        new: a folder in :func:`unfinished_folder` of ``path``.
        path: where to; there may be a folder.
    """
    if path.exists():
        path.rename(unfinished_path(path) / _REPLACED)
    try:
        new.rename(path)
    except BaseException:
        restore_replaced(path)
        raise


def restore_replaced(path: Path) -> None:
    """Put a folder back that was moved away to be replaced, if the new one never came."""
    replaced = unfinished_path(path) / _REPLACED
    if not path.exists() and replaced.is_dir() and read_mark(unfinished_path(path), "unfinished") is not None:
        replaced.rename(path)
