"""Open-i's images: PNG files in a folder, in a ``.tar`` that is read in place, or in a ``.tgz``, as published.

A compressed archive cannot be read image by image, so the images that reports name are unpacked once:

1. The archive's name, size and modification time give a folder ``openi-images/<hash>`` in the package's cache.
2. One pass over the archive writes each image under a temporary name and renames it. Images from an earlier,
   interrupted pass are kept.
3. The archive is read to its end, which verifies its checksum. Then ``unpacked.json`` says which file holds which
   image. The archive is read again only for images that ``unpacked.json`` does not list or whose file is gone.

The archive comes from elsewhere, so only regular files are written, under names that reports give, and none that is
larger than any image.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import tarfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from uuid import uuid4

from sae_lens_maira.data.archives import DamagedArchive, check_end, is_gzip, read_members
from sae_lens_maira.data.study import FileImage, LazyImage
from sae_lens_maira.errors import SourceError
from sae_lens_maira.files import default_cache_path, from_json

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

_IMAGE_KEY = re.compile(r"\d+_IM-\d[\d-]*")
_IMAGE_ENDINGS = {".png", ".jpg", ".jpeg"}
_LARGEST_IMAGE = 1 << 26
_MARKER = "unpacked.json"


@dataclass(frozen=True, slots=True)
class TarImage:
    """An image inside an uncompressed archive, read in place."""

    path: Path
    offset: int
    n_bytes: int

    def open(self) -> Image:
        from sae_lens_maira.data.image_files import check_n_bytes, decode_image

        name = f"image at byte {self.offset} of '{self.path}'"
        check_n_bytes(self.n_bytes, name)
        with self.path.open("rb") as file:
            file.seek(self.offset)
            content = file.read(self.n_bytes)
        return decode_image(content, name)


def image_key(name: str) -> str:
    """What identifies an image: ``CXR1_1_IM-0001-3001.png`` and ``1_IM-0001-3001.dcm.png`` are the same image."""
    match = _IMAGE_KEY.search(name)
    return match[0].rstrip("-") if match else Path(name).stem


def find_images(path: Path, keys: Collection[str]) -> dict[str, tuple[LazyImage, int]]:
    """Images and their sizes in bytes, by key.

    Args:
        path: a folder, a ``.tar``, or a ``.tgz``, whose images are unpacked into the cache unless they are there.
        keys: of the images to find; see :func:`image_key`.

    Raises:
        SourceError: the path does not exist, or is not a complete archive.
    """
    if path.is_dir():
        files = (file for file in sorted(path.rglob("*")) if _is_image(file.name, keys) and file.is_file())
        return {image_key(file.name): (FileImage(file), file.stat().st_size) for file in files}
    if not path.is_file():
        raise SourceError(f"There are no Open-i images '{path}'.")
    if is_gzip(path):
        return {key: (FileImage(file), file.stat().st_size) for key, file in _unpacked(path, keys).items()}
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            found: dict[str, tuple[LazyImage, int]] = {
                image_key(Path(member.name).name): (TarImage(path, member.offset_data, member.size), member.size)
                for member in archive
                if member.isfile() and _is_image(Path(member.name).name, keys)
            }
            check_end(file, archive.offset)
            return found
    except (tarfile.TarError, DamagedArchive, EOFError, OSError, ValueError, RecursionError) as error:
        raise SourceError(f"'{path}' is neither a folder of images nor a .tar or .tgz of them ({error}).") from error


def _is_image(name: str, keys: Collection[str]) -> bool:
    return Path(name).suffix.lower() in _IMAGE_ENDINGS and image_key(name) in keys


def _unpacked(archive: Path, keys: Collection[str]) -> dict[str, Path]:
    """The unpacked images of a compressed archive, by key; those that are missing are unpacked now."""
    status = archive.stat()
    identity = json.dumps([archive.name, status.st_size, status.st_mtime_ns])
    folder = default_cache_path() / "openi-images" / hashlib.sha256(identity.encode()).hexdigest()[:24]
    marker = folder / _MARKER
    names = _unpacked_names(marker)
    whole = all((folder / name).is_file() for name in names.values() if name is not None)
    if not whole or not names.keys() >= set(keys):
        folder.mkdir(parents=True, exist_ok=True)
        logger.info(
            "Unpacking the images of '%s' (%s compressed, and about as much unpacked) once, into '%s'.",
            archive,
            _megabytes(status.st_size),
            folder,
        )
        looked_for = names.keys() | set(keys)
        names = {**dict.fromkeys(sorted(looked_for)), **_unpack(archive, folder, looked_for)}
        _write(marker, json.dumps(names, indent=1).encode())
    files = {key: folder / name for key in sorted(set(keys)) if (name := names[key]) is not None}
    n_bytes = sum(file.stat().st_size for file in files.values())
    logger.info("%d images of '%s' (%s) are in '%s'.", len(files), archive.name, _megabytes(n_bytes), folder)
    return files


def _unpacked_names(marker: Path) -> dict[str, str | None]:
    """The file name of each image by key, None for one that the archive lacks; empty if that is not known."""
    try:
        names = from_json(marker.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(names, dict):
        return {}
    return {key: name for key, name in names.items() if name is None or (isinstance(name, str) and _is_bare(name))}


def _is_bare(name: str) -> bool:
    return Path(name).name == name


def _unpack(archive: Path, folder: Path, keys: Collection[str]) -> dict[str, str]:
    """Write the images that are missing; returns the file names of all images, by key."""
    found: dict[str, str] = {}

    def is_missing(path: str, n_bytes: int) -> bool:
        name, folders = PurePosixPath(path).name, PurePosixPath(path).parts
        leads_out = path.startswith("/") or ".." in folders
        if leads_out or not _is_image(name, keys) or image_key(name) in found:
            return False
        if n_bytes > _LARGEST_IMAGE:
            raise SourceError(f"'{name}' in '{archive}' has {n_bytes} bytes; no Open-i image is larger than 64 MiB.")
        file = folder / (image_key(name) + Path(name).suffix.lower())
        found[image_key(name)] = file.name
        return not (file.is_file() and file.stat().st_size == n_bytes)

    try:
        for path, content in read_members(archive, is_missing, "unpacking images"):
            _write(folder / found[image_key(PurePosixPath(path).name)], content)
    except DamagedArchive as error:
        shutil.rmtree(folder, ignore_errors=True)  # files from a damaged archive may be damaged too
        raise SourceError(f"'{archive}' is not a complete .tgz of images ({error}); download it again.") from error
    return found


def _write(path: Path, content: bytes) -> None:
    """Write under a temporary name and rename, so that no partial file is ever seen."""
    temporary = path.with_name(f".{path.name}-{uuid4().hex}.part")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.0f} MB"
