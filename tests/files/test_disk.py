"""Where a file or folder can be written is known before any work."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import pytest

from shortv_export.errors import ShortVError
from shortv_export.files.disk import check_writable
from shortv_export.files.json_file import write_text


def listing(folder: Path) -> dict[str, Any]:
    return {path.name: path.lstat().st_mtime_ns if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("name", ["new", "old", "dangling", "to-old", "deep/er/new", "模\udcff\n", "x" * 200])
def test_what_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old").write_text("old")
    Path("dangling").symlink_to("target")
    Path("to-old").symlink_to("old")
    before = listing(tmp_path)
    check_writable(Path(name))
    assert listing(tmp_path) == before, "nothing is left, and nothing changed"
    write_text(Path(name), "new")
    assert Path(name).read_text() == "new"
    assert Path("dangling").is_symlink()
    assert Path("to-old").is_symlink()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("folder", "is a folder"),
        ("", "is a folder"),
        ("..", "is a folder"),
        ("/", "is a folder"),
        ("file/x", "Not a directory"),
        ("file/x/y", "Not a directory"),
        ("x" * 300, "File name too long"),
        ("deep/" + "x" * 300 + "/y", "File name too long"),
        ("模" * 80, "File name too long"),
        ("loop", "is no regular file"),
        ("pipe", "is no regular file"),
        ("/dev/null", "is no regular file"),
        ("/dev/full", "is no regular file"),
        ("to-null", "is no regular file"),
        ("/proc/shortv", "No such file or directory"),
        ("/sys/shortv", "Permission denied"),
        ("nul\0l", "embedded null"),
        ("\ud800", "surrogates not allowed"),
    ],
)
def test_what_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, reason: str) -> None:
    if name.startswith(("/dev", "/proc", "/sys")) and not Path(name).parent.exists():
        pytest.skip("no such folder on this system")
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").write_text("x")
    Path("loop").symlink_to("loop")
    Path("to-null").symlink_to("/dev/null")
    os.mkfifo("pipe")
    before = listing(tmp_path)
    with pytest.raises(ShortVError, match=reason):
        check_writable(Path(name))
    assert listing(tmp_path) == before
    assert Path("/dev/null").is_char_device()


def test_a_read_only_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scores.json"
    path.write_text("precious")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(ShortVError, match="cannot be written to; name another file"):
        check_writable(path)


@pytest.mark.parametrize("folder", [False, True])
def test_a_full_disk(tmp_path: Path, folder: bool) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(ShortVError, match=r"^cannot write .*out: File too large; name another"):
            check_writable(tmp_path / "new" / "out", folder=folder)
        with pytest.raises(ShortVError, match=r"^cannot write .*out: File too large\.$"):
            write_text(tmp_path / "new" / "out", "x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new", "deep/new"):
        check_writable(tmp_path / name, folder=True)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    for name, reason in (("/", "mount point"), ("/proc/x", "No such file"), ("x" * 300, "too long")):
        with pytest.raises(ShortVError, match=reason):
            check_writable(tmp_path / name, folder=True)
