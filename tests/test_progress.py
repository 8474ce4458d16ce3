"""Progress: a bar at a terminal, lines without one, nothing where nothing is asked for; results alone on stdout."""

from __future__ import annotations

import fcntl
import logging
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from shortv_export import progress as module
from shortv_export.progress import progress

ROOT = Path(__file__).resolve().parents[1]
WORK = (
    "import logging, sys, time\n"
    "from shortv_export.progress import progress\n"
    "logging.basicConfig(level=sys.argv[1], format='%(message)s')\n"
    "with progress('Working', 5, 'sample', done=1) as advance:\n"
    "    for _ in range(4): time.sleep(0.15); advance(1)\n"
)


def test_lines_without_a_terminal(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock, not by the number of steps."""
    clock = iter([0.0, 4.0, 11.0, 11.0, 15.0, 22.0, 22.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    caplog.set_level("INFO", "shortv_export")
    with progress("Scoring", 8, "sample", done=2) as advance:
        for _ in range(4):
            advance(1)
    assert caplog.messages == ["Scoring: 4 of 8 samples", "Scoring: 6 of 8 samples"]


def test_bytes_and_no_more_than_all(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL", -1)
    caplog.set_level("INFO", "shortv_export")
    with progress("Hashing", 3_000_000_000, "B") as advance:
        advance(1_500_000_000)
        advance(2_000_000_000)
    assert caplog.messages == ["Hashing: 1.5 of 3.0 GB", "Hashing: 3.0 of 3.0 GB"]


@pytest.mark.parametrize(("level", "shown"), [(logging.INFO, True), (logging.WARNING, False)])
def test_at_a_terminal(level: int, shown: bool) -> None:
    """A bar that ends whole, on standard error; nothing where messages are not wanted."""
    reader, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    with subprocess.Popen(
        [sys.executable, "-c", WORK, logging.getLevelName(level)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=terminal,
    ) as process:
        out, _ = process.communicate(timeout=60)
        os.close(terminal)
        err = b""
        try:
            while chunk := os.read(reader, 4096):
                err += chunk
        except OSError:  # how Linux says that the other end is closed
            pass
        os.close(reader)
    assert (process.returncode, out) == (0, b"")
    assert (b"Working: 100%" in err and b"5/5" in err) == shown
    assert bool(err) == shown


def test_results_alone_on_standard_output(run: Any, tiny_base: Any, tmp_path: Path) -> None:
    """What a pipe gets is the result: the verdict's table, and no bar, message or control character."""
    assert run("package", tiny_base(), tmp_path / "package", "--frozen-layers", "1,3")[0] == 0
    status, out, err = run("verify", tmp_path / "package")
    assert status == 3  # the base is a folder, which nobody named
    assert out.startswith("Verification of")
    assert "in a fresh process" in err
    assert "fresh process" not in out
    assert "\x1b" not in out + err


def test_only_the_first_process_prints(run: Any, tiny_base: Any, tmp_path: Path, monkeypatch: Any) -> None:
    for rank, printed in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        status, out, err = run("package", tiny_base(), tmp_path / f"package{rank}", "--frozen-layers", "1,3")
        assert (status, bool(out)) == (0, printed)
        assert err == ""
