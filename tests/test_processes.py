"""A command that is stopped cleans up and says so; its children end with it, whatever kills it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shortv_export.processes import hold, lifeline

ROOT = Path(__file__).parents[1]
WAITS = """
import sys, time
from shortv_export import cli, terminal
from shortv_export.files import new_folder
from pathlib import Path

def wait():
    with new_folder(Path(sys.argv[1])) as folder:
        (folder / "half").touch()
        print("ready", flush=True)
        time.sleep(60)

sys.exit(terminal.run(wait, debug=False))
"""


def start(code: str, *arguments: str, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, cwd=ROOT, **pipes, **options)  # type: ignore[call-overload]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated"), (signal.SIGHUP, 129, "hung up")],
)
def test_signals(tmp_path: Path, number: signal.Signals, status: int, word: str) -> None:
    process = start(WAITS, str(tmp_path / "out"))
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate()
    assert (process.returncode, out, err) == (status, "", f"{word}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(60)
def test_what_nohup_ignores_is_ignored(tmp_path: Path) -> None:
    process = start(WAITS, str(tmp_path / "out"), preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert (process.returncode, err) == (143, "terminated\n")


FORKS = """
import os, sys, time
from shortv_export import terminal

def wait():
    child = os.fork()
    if child == 0:  # it says so itself: Python forgets signals that arrive during a fork
        print("ready", os.getpid(), flush=True)
        time.sleep(60)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status))

sys.exit(terminal.run(wait, debug=False))
"""


@pytest.mark.timeout(60)
def test_a_forked_child_ends_without_a_word() -> None:
    process = start(FORKS)
    assert process.stdout
    os.kill(int(process.stdout.readline().split()[1]), signal.SIGTERM)
    out, err = process.communicate()
    assert (process.returncode, out, err) == (0, f"{-signal.SIGTERM}\n", "")


def gone(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def wait_until_gone(pid: int) -> None:
    while not gone(pid):
        time.sleep(0.02)


# A child that holds Python's lock: no thread of it could look after the parent.
BUSY = "import re\nprint('ready', flush=True)\nre.match('(a+)+$', 'a' * 60 + 'b')\n"
PARENT = """
import subprocess, sys
from shortv_export.processes import lifeline, tied

with lifeline() as ends:
    child = subprocess.Popen(tied(sys.argv[1], ends), pass_fds=ends, stdout=subprocess.PIPE)
    child.stdout.readline()
    print(child.pid, flush=True)
    child.wait()
"""


@pytest.mark.timeout(60)
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_script_ends_with_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    script = tmp_path / "busy.py"
    script.write_text(BUSY)
    parent = start(PARENT, str(script))
    assert parent.stdout
    child = int(parent.stdout.readline())
    assert not gone(child)
    parent.send_signal(number)
    parent.wait()
    wait_until_gone(child)
    parent.communicate()


@pytest.mark.timeout(60)
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_forked_children_end_with_their_parent() -> None:
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        with lifeline() as (one,), lifeline() as (two,):
            for end in (one, two):  # the second inherits what keeps the first alive, and lets go of it
                if os.fork() == 0:
                    hold(end)
                    os.write(writing, b"%d\n" % os.getpid())
                    time.sleep(60)
                    os._exit(0)
            time.sleep(60)
        os._exit(0)
    with os.fdopen(reading) as file:
        children = [int(file.readline()) for _ in range(2)]
    assert not any(map(gone, children))
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    for child in children:
        wait_until_gone(child)
    os.close(writing)


def test_a_parent_that_has_ended_already() -> None:
    with lifeline() as ends:
        child = os.fork()
        if child == 0:
            time.sleep(0.1)
            hold(ends[0])
            os._exit(0)
    # The child alone has the writing end now, and lets go of it.
    _, status = os.waitpid(child, 0)
    assert status != 0
