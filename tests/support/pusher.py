"""A process that pushes on demand, as the command line does.

Each push runs in a fork of a process that has already imported everything, so starting and killing one is fast.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from importlib import import_module
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
    """Runs ``shortv-export push`` in forks of one process, one after the other."""

    def __init__(self, env: Mapping[str, str]) -> None:
        quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_VERBOSITY": "critical", "PYTHONWARNINGS": "ignore"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.pusher"],
            cwd=Path(__file__).parents[2],
            env={**os.environ, **env, **quiet},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

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
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        pid = json.loads(self._process.stdout.readline())
        hung = threading.Timer(patience, _signal, (pid, signal.SIGKILL))
        hung.start()
        if kill_at is not None:
            while not kill_at.wait(0.02) and _signal(pid, 0):
                pass
            _signal(pid, signal.SIGKILL)
        elif end_after is not None:
            time.sleep(end_after[0])
            _signal(pid, end_after[1])
        status, text = json.loads(self._process.stdout.readline())
        was_hung = not hung.is_alive()
        hung.cancel()
        return Outcome(None if was_hung else status, text)

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def _signal(pid: int, number: int) -> bool:
    """Sends a signal; returns whether there was such a process."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


def _serve() -> None:
    """Does one push for each line of stdin: says its process id, then its exit status and what it wrote to stderr."""
    from shortv_export import cli

    # A push that fails at once imports and prepares most of what the others need; the rest are the models.
    models = ("auto.processing_auto", "clip.modeling_clip", "llama.modeling_llama", "llava.modeling_llava")
    for module in (
        *("huggingface_hub.repocard", "matplotlib.backends.backend_agg", "matplotlib.figure", "rich.console"),
        *("shortv_export.packaging.figures", "shortv_export.pipeline", "shortv_export.records.recipe_schema"),
        *(f"transformers.models.{name}" for name in models),
    ):
        import_module(module)
    token = os.environ.pop("HF_TOKEN")
    sys.argv = ["shortv-export", "push", "nothing", "nowhere"]
    with redirect_stderr(io.StringIO()), suppress(SystemExit):
        cli.main()
    os.environ["HF_TOKEN"] = token

    for line in sys.stdin:
        with tempfile.TemporaryFile() as stderr:
            pid = os.fork()
            if pid == 0:
                os.dup2(stderr.fileno(), 2)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                sys.argv = ["shortv-export", "push", *json.loads(line)]
                time.sleep = lambda seconds: None  # no waiting between attempts
                cli.main()
                raise SystemExit
            _say(pid)
            _, status = os.waitpid(pid, 0)
            stderr.seek(0)
            _say([os.waitstatus_to_exitcode(status), stderr.read().decode("utf-8", "replace")])


def _say(message: object) -> None:
    os.write(1, (json.dumps(message) + "\n").encode())


if __name__ == "__main__":
    _serve()
