"""Temporary files and folders of killed processes go; those of living processes, and everybody else's, stay."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shortv_export.errors import ShortVError
from shortv_export.files.folders import new_folder
from shortv_export.files.json_file import write_text
from shortv_export.files.temporary import scratch_folder, temporary_beside


def started(action: Callable[[], object]) -> int:
    """A child process that runs `action`, which calls `rest` at the end."""
    child = os.fork()
    if child == 0:
        action()
        os._exit(0)
    return child


def rest() -> None:
    time.sleep(60)


def killed(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def make_folder(out: Path) -> None:
    with new_folder(out) as folder:
        (folder / "half").touch()
        out.with_name(f"ready-{os.getpid()}").touch()
        rest()


def make_file(path: Path) -> None:
    with temporary_beside(path) as hidden:
        hidden.write_text("half")
        rest()


def until_there(folder: Path) -> None:
    while not any(folder.iterdir()):
        time.sleep(0.01)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["out", "x" * 250])
def test_the_next_run_removes_what_a_killed_one_left(tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    dead, alive = started(lambda: make_folder(out)), started(lambda: make_folder(out))
    for child in (dead, alive):
        while not (ready := tmp_path / f"ready-{child}").exists():
            time.sleep(0.01)
        ready.unlink()
    killed(dead)
    with new_folder(out) as folder:
        (folder / "whole").touch()
    assert len(list(tmp_path.iterdir())) == 2, "the folder, and the hidden one of the living process"
    assert [path.name for path in out.iterdir()] == ["whole"]
    killed(alive)


@pytest.mark.timeout(60)
def test_files(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    child = started(lambda: make_file(path))
    until_there(tmp_path)
    while not (hidden := next(tmp_path.iterdir())).stat().st_size:
        time.sleep(0.01)
    write_text(path, "1")
    assert sorted(tmp_path.iterdir()) == [hidden, path]
    killed(child)
    write_text(path, "2")
    assert [each.name for each in tmp_path.iterdir()] == ["scores.json"]
    assert path.read_text() == "2"


def test_nobody_elses_files_are_taken_for_ours(tmp_path: Path) -> None:
    path = tmp_path / "out"
    (tmp_path / "precious").mkdir()
    for name in (
        ".out.shortv-old",
        ".out.20240101",
        ".outer.shortv-abcdefgh",
        ".out.shortv-abcdefghi",
        "out.shortv-a",
    ):
        (tmp_path / name).mkdir()
    (tmp_path / ".out.shortv-abcdefgh").symlink_to(tmp_path / "precious")
    os.mkfifo(tmp_path / ".out.shortv-hgfedcba")
    before = {each.name for each in tmp_path.iterdir()}
    write_text(path, "x")
    assert before - {".out.shortv-hgfedcba"} <= {each.name for each in tmp_path.iterdir()}


@pytest.mark.timeout(120)
def test_many_processes_at_once(tmp_path: Path) -> None:
    """Nobody removes what another one is just making."""

    def work() -> None:
        for _ in range(50):
            with temporary_beside(tmp_path / "out", folder=True) as folder:
                (folder / "file").touch()
                assert (folder / "file").exists()
            write_text(tmp_path / "text", "x" * 1000)

    children = [started(work) for _ in range(4)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


@pytest.mark.timeout(60)
def test_scratch_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def work() -> None:
        with scratch_folder("verify"):
            rest()

    child = started(work)
    until_there(tmp_path)
    killed(child)
    with scratch_folder("verify") as folder:
        assert list(tmp_path.iterdir()) == [folder]
    assert list(tmp_path.iterdir()) == []
    shutil.rmtree(tmp_path)
    tmp_path.write_text("a file")
    with pytest.raises(ShortVError, match="cannot write in"), scratch_folder("verify"):
        pass
