"""Archives of a data set's files, read in one pass to their very end, so that damage is noticed and never skipped."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from tqdm.auto import tqdm

from sae_lens_maira.errors import UserError


class DamagedArchive(Exception):
    """An archive cannot be read to its end."""


def is_gzip(path: Path) -> bool:
    """Whether a file is compressed with gzip."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def read_members(
    path: Path, is_wanted: Callable[[str, int], bool], progress: str | None = None
) -> Iterator[tuple[str, bytes]]:
    """Paths and contents of the regular files of a ``.tgz``, whose checksum is verified, or of a ``.tar``.

    Args:
        path: of the archive.
        is_wanted: says by path and size in bytes which files to yield.
        progress: what to call the progress bar; None shows none.

    Raises:
        DamagedArchive: the archive is cut short, or its checksum is wrong. What was yielded before may be wrong too.
    """
    size = path.stat().st_size
    try:
        with (
            path.open("rb") as file,
            tqdm(total=size, desc=progress, unit="B", unit_scale=True, disable=progress is None) as bar,
        ):
            stream: BinaryIO = gzip.GzipFile(fileobj=file, mode="rb") if is_gzip(path) else file  # pyright: ignore[reportAssignmentType]
            with tarfile.open(fileobj=stream, mode="r|") as members:
                for member in members:
                    if member.isfile() and is_wanted(member.name, member.size):
                        content = members.extractfile(member)
                        assert content is not None
                        yield member.name, content.read()
                    bar.update(file.tell() - bar.n)
                end = members.offset
            while stream.read(1 << 20):
                pass
            bar.update(file.tell() - bar.n)
            if stream is file:
                check_end(file, end)
    except UserError:
        raise
    except (tarfile.TarError, EOFError, OSError, zlib.error, ValueError, RecursionError) as error:
        raise DamagedArchive(str(error) or type(error).__name__) from error


def check_end(file: BinaryIO, offset: int) -> None:
    """Check that a ``.tar`` ends where its last member does: a damaged header looks like the end to ``tarfile``.

    Raises:
        DamagedArchive: something else than the archive's end stands there.
    """
    file.seek(offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise DamagedArchive(f"no member and no end of the archive at byte {offset}")
