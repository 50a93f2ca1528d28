"""Which folders a gallery may take the place of: empty ones, and galleries that hold nothing but their own files."""

from __future__ import annotations

import re
from pathlib import Path

from sae_lens_maira.errors import DashboardError
from sae_lens_maira.files import list_files, mark, read_mark, restore_replaced

KIND = "gallery"
_ADDED_WHILE_VIEWED = re.compile(r"pages/feature_\d+\.html|data/index\.tmp")


def mark_gallery(folder: Path, gallery_id: str | None) -> None:
    """Write down which files a complete gallery has, and the id of its origin, if it keeps one."""
    mark(folder, KIND, files=list_files(folder), id=gallery_id)


def gallery_id(folder: Path) -> str | None:
    """The id of a gallery's origin, by its mark."""
    return (read_mark(folder, KIND) or {}).get("id")


def check_replaceable(path: Path) -> None:
    """Refuse a folder that holds something other than a gallery's own files.

    Raises:
        DashboardError: it does; the message names what.
    """
    restore_replaced(path)
    if path.is_symlink() or path.is_mount():
        raise DashboardError(f"'{path}' is a link or a mount point, which cannot be replaced; give another folder.")
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    found = read_mark(path, KIND)
    if found is None:
        raise DashboardError(f"'{path}' holds something other than a gallery; choose another folder.")
    own = set(found.get("files", []))
    foreign = next(
        (name for name in list_files(path) if name not in own and not _ADDED_WHILE_VIEWED.fullmatch(name)), None
    )
    if foreign is not None:
        raise DashboardError(
            f"'{path / foreign}' is none of the gallery's own files; move it away, or choose another folder."
        )
