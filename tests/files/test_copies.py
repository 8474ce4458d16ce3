"""A copy has the content of its source and shares nothing with it that can be written.

Clones need a file system that has them. To test them, too: ``pytest --basetemp=<folder on Btrfs or XFS> tests/files``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from shortv_export.errors import ShortVError
from shortv_export.files import hashing
from shortv_export.files.copies import copies_are_clones, copy_file
from shortv_export.files.hashing import file_sha256

LARGE = 17 << 20  # bytes, from which on hashes are remembered


def hash_of(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


@pytest.fixture(params=["same disk", "another disk"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    if request.param == "same disk":
        yield tmp_path / "new" / "target"
        return
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is one file system only")
    with tempfile.TemporaryDirectory(dir=other) as folder:
        yield Path(folder, "new", "target")


@pytest.mark.parametrize("size", [0, 1, LARGE])
def test_a_copy_is_equal_and_apart(tmp_path: Path, target: Path, size: int) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(size))
    expected = hash_of(source)
    assert copy_file(source, target, folder=tmp_path) == expected == hash_of(target)
    assert not target.samefile(source)
    assert target.stat().st_nlink == source.stat().st_nlink == 1
    # As `cp tuned.safetensors OUT/model.safetensors` writes: into the same inode.
    with target.open("r+b") as file:
        file.write(b"tuned")
    assert hash_of(source) == expected
    with source.open("r+b") as file:
        file.write(b"other")
    assert target.read_bytes()[:5] == b"tuned"


def test_its_hash_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy was read while it was written; pushing it does not read it once more."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(LARGE))
    expected = copy_file(source, target, folder=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(hashing, "read_through", lambda *_: pytest.fail("the file is read again"))
        assert file_sha256(target, remembered=True) == expected
    with target.open("r+b") as file:
        file.write(b"tuned")
    assert file_sha256(target, remembered=True) == hash_of(target) != expected


def test_what_is_no_file_is_not_copied(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    (tmp_path / "private").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "private")
    os.mkfifo(folder / "pipe")
    for name, reason in (("link", "link out of its folder"), ("pipe", "not a regular file"), ("none", "not exist")):
        with pytest.raises(ShortVError, match=reason):
            copy_file(folder / name, tmp_path / "copy", folder=folder)
    assert not (tmp_path / "copy").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    for name in ("source", "target"):
        (tmp_path / name).write_text(name)
    with pytest.raises(FileExistsError):
        copy_file(tmp_path / "source", tmp_path / "target", folder=tmp_path)
    assert (tmp_path / "target").read_text() == "target"


def test_the_probe_tells_whether_copies_take_room(tmp_path: Path) -> None:
    """Compared with `cp`, which refuses to make a copy that is no clone."""
    source = tmp_path / "source"
    source.write_bytes(os.urandom(LARGE))
    always = ["cp", "--reflink=always", source, tmp_path / "clone"]
    if shutil.which("cp") is None or subprocess.run(["cp", "--reflink=never", source, tmp_path / "x"]).returncode:
        pytest.skip("this `cp` cannot tell")
    clones = subprocess.run(always, capture_output=True).returncode == 0
    before = {path.name for path in tmp_path.iterdir()}
    assert copies_are_clones(source, tmp_path / "not" / "yet") == clones
    assert {path.name for path in tmp_path.iterdir()} == before
    if clones:
        os.sync()
        free = shutil.disk_usage(tmp_path).free
        copy_file(source, tmp_path / "target", folder=tmp_path)
        os.sync()
        assert free - shutil.disk_usage(tmp_path).free < LARGE // 4
    assert not copies_are_clones(tmp_path / "missing", tmp_path)
