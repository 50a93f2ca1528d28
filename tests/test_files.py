"""Folders that are prepared beside their place: leftovers, the swap, and what belongs to someone else."""

import errno

import pytest

from sae_lens_maira.errors import CacheError
from sae_lens_maira.files import (
    MARKER,
    lacks_room,
    link_tree,
    list_files,
    mark,
    replace_folder,
    replacing,
    restore_replaced,
    unfinished_folder,
    unfinished_path,
)


def test_leftovers_of_a_killed_process_are_removed_and_nothing_stays(tmp_path):
    path = tmp_path / "out"
    left = unfinished_path(path)
    (left / "scratch").mkdir(parents=True)
    (left / "scratch" / "activations").write_text("private")
    mark(left, "unfinished")
    with unfinished_folder(path, CacheError) as folder:
        assert not (folder / "scratch").exists()
        (folder / "new").mkdir()
        replace_folder(folder / "new", path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_kill_between_the_two_renames_is_mended(tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    (path / "old").touch()
    left = unfinished_path(path)
    left.mkdir()
    mark(left, "unfinished")
    path.rename(left / "replaced")
    restore_replaced(path)
    assert (path / "old").exists()


def test_another_process_and_a_folder_of_someone_else_are_refused(tmp_path):
    path = tmp_path / "out"
    with (
        unfinished_folder(path, CacheError),
        pytest.raises(CacheError, match="Another process is writing"),
        unfinished_folder(path, CacheError),
    ):
        pass
    unfinished_path(path).mkdir()
    (unfinished_path(path) / "thesis.tex").write_text("mine")
    with pytest.raises(CacheError, match="is in the way"), unfinished_folder(path, CacheError):
        pass
    assert (unfinished_path(path) / "thesis.tex").read_text() == "mine"


def test_a_write_that_fails_leaves_the_good_file_and_nothing_else(tmp_path):
    path = tmp_path / "good"
    path.write_text("good")
    with pytest.raises(TypeError), replacing(path) as file:  # noqa: PT012
        file.write(b"half")
        file.write(None)  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert path.read_text() == "good"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_told_apart_whoever_says_it():
    assert lacks_room(OSError(errno.ENOSPC, "x"))
    assert lacks_room(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert not lacks_room(OSError(errno.EACCES, "Permission denied"))


def test_a_linked_tree_has_the_same_files_and_can_lose_them_alone(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "inner").mkdir(parents=True)
    for name in ("kept", "left", "inner/left"):
        (source / name).write_text(name)
    link_tree(source, target, without=["left"])
    assert list_files(target) == ["inner/left", "kept"]
    assert (target / "kept").samefile(source / "kept")
    (target / "kept").unlink()
    assert (source / "kept").read_text() == "kept"


def test_what_a_process_leaves_that_is_killed_before_its_mark_is_its_own(tmp_path):
    left = unfinished_path(tmp_path / "out")
    left.mkdir()
    for name in ("lock", f".{MARKER}.host-1.tmp"):
        (left / name).touch()
    with unfinished_folder(tmp_path / "out", CacheError):
        pass
    assert not left.exists()
