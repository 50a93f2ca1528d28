"""Folders that are prepared beside their place: leftovers, the swap, and what belongs to someone else."""

import pytest

from sae_lens_maira.errors import CacheError
from sae_lens_maira.files import mark, replace_folder, restore_replaced, unfinished_folder, unfinished_path


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
