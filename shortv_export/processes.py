"""How this process is stopped, and its child processes with it.

``python -I processes.py LIFELINE SCRIPT`` runs a script that ends when its parent ends (see `tied`). So this file
imports the standard library only.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_SIGNALS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}

stopping = threading.Event()
"""Set by the first signal. Threads that nobody waits for look at it."""
_stops: list[Stopped] = []


class Stopped(KeyboardInterrupt):
    """A signal stops the command. Like Ctrl-C, which is one of them, it cleans up on the way.

    Attributes:
        word: what happened, for the user.
        status: what the process exits with.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.word = _SIGNALS[signal.Signals(number).name]
        self.status = 128 + number


def stop_before() -> Stopped | None:
    """The signal that came before a failure: libraries swallow its exception, and then fail at what was cut short."""
    return _stops[0] if _stops and stopping.is_set() else None


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Inside the context, SIGINT, SIGTERM and SIGHUP raise `Stopped`. One that is ignored, as by `nohup`, stays so.

    They end a forked child without a word.
    """
    owner = os.getpid()

    def stop(number: int, _: FrameType | None) -> None:
        if os.getpid() != owner:
            signal.signal(number, signal.SIG_DFL)
            return os.kill(os.getpid(), number)
        stopping.set()
        _stops.append(Stopped(number))
        raise _stops[-1]

    stopping.clear()
    _stops.clear()
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
        before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


@contextmanager
def lifeline() -> Iterator[tuple[int, ...]]:
    """What ties child processes to this one: they end when the context or this process does, whatever kills it.

    It is the reading end of a pipe whose writing end this process alone holds. A forked child calls `hold` with it. A
    script gets it by `tied`::

        with lifeline() as ends:
            subprocess.run(tied(script, ends), pass_fds=ends)

    Yields:
        The file descriptor; none on a system without `fcntl`.
    """
    if fcntl is None:
        yield ()
        return
    reading, writing = os.pipe()
    _writing.add(writing)
    try:
        yield (reading,)
    finally:
        _writing.discard(writing)
        os.close(reading)
        os.close(writing)


def tied(script: str | Path, ends: tuple[int, ...]) -> list[str]:
    """The command that runs a Python script, isolated from this one's environment, tied to a `lifeline`."""
    return [sys.executable, "-I", "-B", *((__file__, str(ends[0])) if ends else ()), str(script)]


def hold(reading: int) -> None:
    """Ends this process when its parent lets go of the `lifeline`, or has done so already.

    The kernel sends the signal SIGIO, which ends a process even in the middle of a call that holds Python's lock.
    """
    while _writing:  # a forked process has inherited them
        os.close(_writing.pop())
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(reading, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(reading, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    try:
        if not os.read(reading, 1):
            os._exit(128 + signal.SIGIO)
    except BlockingIOError:
        pass  # the parent lives


_writing: set[int] = set()
"""The writing ends of this process's lifelines."""


if __name__ == "__main__":
    hold(int(sys.argv[1]))
    sys.argv[:] = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
