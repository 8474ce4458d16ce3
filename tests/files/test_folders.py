"""Folders appear whole or not at all, and are replaced without touching the files of others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shortv_export.errors import ShortVError
from shortv_export.files.folders import move_over, new_folder


def test_a_folder_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "out"
    with new_folder(out) as folder:
        (folder / "file").write_text("content")
        assert folder.parent == out.parent
        assert not out.exists()
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert (out / "file").read_text() == "content"
    assert out.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [ShortVError, RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_of_a_failure(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with new_folder(tmp_path / "a" / "b" / "out") as folder:
            (folder / "file").write_text("content")
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_others_use_meanwhile_stays(tmp_path: Path) -> None:
    def fail() -> None:
        with new_folder(tmp_path / "a" / "out"):
            (tmp_path / "a" / "other").write_text("content")
            raise ShortVError

    with pytest.raises(ShortVError):
        fail()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["other"]


def test_what_the_disk_refuses_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    with pytest.raises(ShortVError, match=r"^cannot write .*out: .*\.$"), new_folder(tmp_path / "file" / "out"):
        pass
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(ShortVError, match=r"^cannot write .*full: .*\.$"), new_folder(tmp_path / "full"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


@pytest.mark.parametrize("links", [True, False])
def test_a_replaced_folder_keeps_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "below").mkdir(parents=True)
    (old / "below" / "weights").write_text("content")
    if not links:

        def refuse(*_: object) -> None:
            raise OSError("no links here")

        monkeypatch.setattr(os, "link", refuse)
    move_over(old, "below/weights", new)
    assert (new / "below" / "weights").read_text() == "content"
    assert (new / "below" / "weights").samefile(old / "below" / "weights") == links


def test_the_file_behind_a_link_stays_its_owners(tmp_path: Path) -> None:
    """In a Hub cache the names are links to blobs, which other snapshots share."""
    blob, snapshot = tmp_path / "blobs" / "abc", tmp_path / "snapshots" / "1"
    blob.parent.mkdir()
    blob.write_text("content")
    snapshot.mkdir(parents=True)
    (snapshot / "weights").symlink_to(blob)
    move_over(snapshot, "weights", tmp_path / "new")
    moved = tmp_path / "new" / "weights"
    assert not moved.is_symlink()
    moved.write_text("changed")
    assert blob.read_text() == "content"

    (snapshot / "other").symlink_to(tmp_path / "private")
    (tmp_path / "private").write_text("secret")
    with pytest.raises(ShortVError, match="link out of its folder"):
        move_over(snapshot, "other", tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["weights"]
