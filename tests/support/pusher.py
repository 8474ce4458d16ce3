"""A process that pushes on demand, as the command line does.

Each push runs in a fork of a process that has already imported everything, so starting and killing one is fast.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """How a push ended.

    Attributes:
        status: the exit status; minus the signal that killed the process; None if it had to be ended, as it hung.
        text: what it wrote to stderr.
    """

    status: int | None
    text: str

    @property
    def done(self) -> bool:
        """Whether it says that the push is done."""
        return self.status == 0


class Pusher:
    """Runs ``shortv-export push`` in forks of one process, one after the other.

    Args:
        env: variables of the environment.
        package: one whose push the process tries first, which imports and prepares what the others need.
    """

    def __init__(self, env: Mapping[str, str], package: Path) -> None:
        quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_VERBOSITY": "critical", "PYTHONWARNINGS": "ignore"}
        self._env = {**os.environ, **env, **quiet}
        self._package = package
        self._is_ready = False
        self._process = self._start()

    def prepare(self) -> None:
        """Waits until the process can push. After a push that was broken off, it is a new one."""
        if self._process.poll() is not None:
            self._process, self._is_ready = self._start(), False
        if not self._is_ready:
            assert self._process.stdout
            assert json.loads(self._process.stdout.readline()) == "ready"
            self._is_ready = True

    def push(
        self,
        arguments: list[str],
        *,
        kill_at: threading.Event | None = None,
        end_after: tuple[float, int] | None = None,
        patience: float = 60,
    ) -> Outcome:
        """Pushes with these arguments, and waits for the end.

        Args:
            arguments: of ``shortv-export push``.
            kill_at: the process is killed when it is set.
            end_after: seconds after which the process gets a signal, and the signal.
            patience: seconds after which a push counts as hung.
        """
        try:
            self.prepare()
            return self._push(arguments, kill_at, end_after, patience)
        except BaseException:  # such as the time limit of a test: what the process says next belongs to this push
            self._process.kill()
            self.close()
            raise

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.support.pusher", str(self._package)],
            cwd=Path(__file__).parents[2],
            env=self._env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _push(
        self,
        arguments: list[str],
        kill_at: threading.Event | None,
        end_after: tuple[float, int] | None,
        patience: float,
    ) -> Outcome:
        process = self._process
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps(arguments) + "\n")
        process.stdin.flush()
        pid = json.loads(process.stdout.readline())
        hung = threading.Timer(patience, _signal, (pid, signal.SIGKILL))
        hung.start()
        try:
            if kill_at is not None:
                while not kill_at.wait(0.02) and _signal(pid, 0):
                    pass
                _signal(pid, signal.SIGKILL)
            elif end_after is not None:
                time.sleep(end_after[0])
                _signal(pid, end_after[1])
            status, text = json.loads(process.stdout.readline())
            return Outcome(status if hung.is_alive() else None, text)
        except BaseException:
            _signal(pid, signal.SIGKILL)
            raise
        finally:
            hung.cancel()


def _signal(pid: int, number: int) -> bool:
    """Sends a signal; returns whether there was such a process."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


def _serve() -> None:
    """Does one push for each line of stdin: says its process id, then its exit status and what it wrote to stderr."""
    from shortv_export import cli

    sys.argv = ["shortv-export", "push", sys.argv[1], "loopback/nothing", "--dry-run"]
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), suppress(SystemExit):
        cli.main()
    _say("ready")

    for line in sys.stdin:
        with tempfile.TemporaryFile() as stderr:
            pid = os.fork()
            if pid == 0:
                os.dup2(stderr.fileno(), 2)
                sys.argv = ["shortv-export", "push", *json.loads(line)]
                time.sleep = lambda seconds: None  # no waiting between attempts
                _say(os.getpid())  # itself: Python forgets signals that arrive during a fork
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                _end(cli.main)
            _, status = os.waitpid(pid, 0)
            stderr.seek(0)
            _say([os.waitstatus_to_exitcode(status), stderr.read().decode("utf-8", "replace")])


def _end(main: Callable[[], None]) -> None:
    """Ends this process as Python does after a command, but frees nothing, which takes seconds in a fork."""
    status: int | str | None = 1
    try:
        main()
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


def _say(message: object) -> None:
    os.write(1, (json.dumps(message) + "\n").encode())


if __name__ == "__main__":
    _serve()
