"""Runs what interprets a base's files in a process of its own, with limits of time and memory.

A chat template, a tokenizer and a config are data, but they decide how long their interpreters run and how much memory
these take. A template may loop for ever; a tokenizer may grow a text until its process is aborted. In a process of its
own, only that process ends, and the caller says so in one line.

This is no sandbox: the process may read what its user may read. Nothing of a base is run as code.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import warnings
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from ..errors import ShortVError
from .confined import packed, receive, send, serve

SECONDS = {"chat template": 20.0}
"""How long a part may take, where that is not `_SECONDS`."""
_SECONDS = 60.0
MEMORY = 4 << 30
"""Bytes of memory that a process may take besides what it starts with."""
_MOST_DEATHS = 2
"""The first process to die may be the fault of one picture. The second is that of the base."""


class PartError(ShortVError):
    """A part of a base failed: it raised an exception, crashed, or took too long or too much memory.

    Attributes:
        part: such as "chat template".
        failure: what it did, such as "takes more than 20 seconds".
    """

    def __init__(self, base: str, part: str, failure: str) -> None:
        super().__init__(f"{base}: its {part} {failure}; correct its files or use another base.")
        self.part = part
        self.failure = failure


class RemoteTraceback(Exception):
    """The traceback of an exception in the process, shown with ``--debug``."""


class Worker:
    """A process that interprets a base's files. It starts at the first call, and again at the next one after it died.

    On Linux it is a fork, which takes 20 ms. It has one thread and never touches an accelerator.

    Args:
        base: the name of the base, for messages.
        make: called first in the process, with `args`. Each function of `run` gets what it returns.
    """

    def __init__(self, base: str, make: Callable[..., Any], *args: Any) -> None:
        self.base = base
        self._deaths = 0
        self._make = (make, args)
        self._process: Any = None
        self._connection: Any = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls ``function(made, *args)`` in the process; `function` belongs to a module.

        Raises:
            PartError: it raised an exception, crashed, or took too long or too much memory.
            ShortVError: it raised this, no process can be started, or one has died before.
        """
        try:
            part, failing, kind, *content = self._ask(function, args)
        except BaseException:
            self.close()  # after an interruption, its answer would be taken for that of the next call
            raise
        if kind == "value":
            return content[0]
        raise _error(self.base, part, failing, kind, *content)

    def close(self) -> None:
        """Ends the process, if there is one."""
        if self._process is not None:
            self._process = None
            self._close()

    def _ask(self, function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The part that ran last, what it does if it fails, and the kind and content of the answer."""
        if self._process is None:
            self._start()
        part, failing = "processor", "fails"
        try:
            send(self._connection, packed((function, args)))
            while self._connection.poll(seconds := SECONDS.get(part, _SECONDS)):
                kind, *content = receive(self._connection)
                if kind != "part":
                    return part, failing, kind, *content
                part, failing = content
            failure = f"takes more than {seconds:g} seconds"
        except (OSError, EOFError):
            self._process.join(1)
            failure = _end(self._process.exitcode or 0)
        self._deaths += 1
        error = PartError(self.base, part, failure)
        raise error if self._deaths < _MOST_DEATHS else ShortVError(str(error))

    def _start(self) -> None:
        import torch  # noqa: F401  # so that forks need not import it

        # A fork has what is imported already. Other systems cannot fork safely.
        context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, MEMORY, *self._make), daemon=True)
        try:
            with warnings.catch_warnings():
                # Python warns that a fork may wait for a lock of another thread for ever. The time limit ends it.
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
        except OSError as error:
            ours.close()
            raise ShortVError(
                f"{self.base}: no process can be started ({error.strerror}); free some memory."
            ) from None
        finally:
            theirs.close()
        self._process, self._connection = process, ours
        self._close = weakref.finalize(self, _close, process, ours)  # also if nobody calls `close`


def in_worker(base: str, function: Callable[..., Any], *args: Any) -> Any:
    """Calls ``function(*args)`` in a process of its own (see `Worker.run`)."""
    with Worker(base, tuple) as worker:
        return worker.run(_without_made, function, *args)


def _close(process: Any, connection: Connection) -> None:
    connection.close()
    process.kill()
    process.join()
    process.close()


def _without_made(made: object, function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def _error(base: str, part: str, failing: str, kind: str, text: str, trace: str) -> ShortVError:
    """The exception of the process, as the caller sees it."""
    error = ShortVError(text)
    if kind == "package":
        error = ShortVError(f"{base}: its {part} needs {text}, which is not installed: pip install {text}.")
    elif kind != "refused":
        error = PartError(base, part, _more_memory() if kind == "memory" else f"{failing}: {text}")
    error.__cause__ = RemoteTraceback(f"\n{trace}")
    return error


def _end(status: int) -> str:
    """Why a process ended, by its exit status."""
    if status in (-signal.SIGABRT, -signal.SIGKILL):  # native code aborts where it gets no memory
        return f"{_more_memory()}, or crashes"
    return f"crashes ({signal.Signals(-status).name})" if status < 0 else f"ends its process with status {status}"


def _more_memory() -> str:
    return f"takes more than {MEMORY / 2**30:g} GiB of memory"
