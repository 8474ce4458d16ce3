"""Folders appear whole or not at all; files in them are linked or copied."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

import pytest

from shortv_export.errors import ShortVError
from shortv_export.files.folders import carry, link_or_copy, new_folder


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


def refuse_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)


def test_the_file_behind_a_link_is_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blob, snapshot = tmp_path / "blob", tmp_path / "snapshot"
    blob.write_text("content")
    snapshot.symlink_to(blob)
    assert link_or_copy(snapshot, tmp_path / "new" / "linked")
    assert not (tmp_path / "new" / "linked").is_symlink()
    assert (tmp_path / "new" / "linked").samefile(blob)
    refuse_links(monkeypatch)
    assert not link_or_copy(snapshot, tmp_path / "new" / "copied")
    assert not (tmp_path / "new" / "copied").is_symlink()
    assert not (tmp_path / "new" / "copied").samefile(blob)
    assert (tmp_path / "new" / "copied").read_text() == "content"


@pytest.mark.parametrize("links", [True, False])
def test_only_weights_are_linked_and_copies_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        refuse_links(monkeypatch)
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / "base").write_text(name)
        carry(tmp_path / "base", tmp_path / name, sha256(name.encode()).hexdigest())
        assert (tmp_path / name).read_text() == name
        linked = links and name == "model.safetensors"
        assert (tmp_path / name).samefile(tmp_path / "base") == linked
        (tmp_path / "base").unlink()
    (tmp_path / "base").write_text("changed since")
    with pytest.raises(ShortVError, match=r"^the copy of config\.json differs from the base's file"):
        carry(tmp_path / "base", tmp_path / "config.json", "0" * 64)
