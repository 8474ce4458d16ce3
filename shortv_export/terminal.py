"""The terminal: prints what is safe to show, and ends a command with a status and at most one line of reason."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from .errors import ShortVError, UsageError, notes_of, one_line, shown, without_secrets
from .processes import Stopped, stop_before, stopped_by_signals

_RED = "\x1b[31m{}\x1b[0m"
_failed: list[OSError] = []  # why standard output could not be written to


def say(*lines: str) -> None:
    """Prints lines of a result to standard output."""
    _write_result("".join(f"{shown(line)}\n" for line in lines))


def say_error(line: str, *, label: str = "error: ") -> None:
    """Prints one line to standard error."""
    text = label + shown(line)
    _write(sys.stderr, (_RED.format(text) if _is_terminal(sys.stderr) else text) + "\n")


def say_table(title: str, rows: Sequence[tuple[str, ...]]) -> None:
    """Prints a table without a header."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(shown(title)), title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*(Text(shown(cell)) for cell in row))
    text = io.StringIO()
    Console(file=text, highlight=False, force_terminal=_is_terminal(sys.stdout)).print(table)
    _write_result("\n".join(line.rstrip() for line in text.getvalue().split("\n")))


def say_json(value: Any) -> None:
    """Prints JSON in ASCII, which every encoding has."""
    _write_result(json.dumps(value, indent=2, default=str) + "\n")


class LogPrinter(logging.Handler):
    """Prints what the library logs to standard error: it is the way to a result, not the result.

    Args:
        words: puts a message into the words of the command line.
    """

    def __init__(self, words: Callable[[str], str]) -> None:
        super().__init__()
        self.words = words

    def emit(self, record: logging.LogRecord) -> None:
        message = self.words(record.getMessage())
        if record.levelno >= logging.WARNING:
            say_error(message, label="warning: ")
        elif is_main_process():
            _write(sys.stderr, shown(message) + "\n")


def is_main_process() -> bool:
    """Whether this process is the only one of a command, or the first one of torchrun's, which speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def run(action: Callable[[], object], *, debug: bool, words: Callable[[str], str] = str) -> int:
    """Runs a command.

    Args:
        action: the command.
        debug: whether exceptions are raised, for their traceback.
        words: puts a message into the words of the command line.

    Returns:
        The exit status: 0 done, 1 failed, 2 wrong usage, 128 + the number of the signal that stopped it. If it is not
        0, a line on standard error says why.
    """
    _failed.clear()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # characters that its encoding does not have are escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        with _no_tracebacks(debug), stopped_by_signals():
            action()
            _write(sys.stdout, "")  # flushes what libraries printed
        status = 0
    except KeyboardInterrupt as stop:
        say_error(_with_notes(getattr(stop, "word", "interrupted"), stop), label="")
        return stop.status if isinstance(stop, Stopped) else 128 + signal.SIGINT
    except SystemExit as end:
        if isinstance(end.code, str):
            say_error(end.code)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.__context__, BrokenPipeError):  # from rich, whose help text nobody read to the end
            status = 0
    except Exception as error:
        if debug:
            raise
        if (cause := stop_before()) is not None:
            say_error(_with_notes(cause.word, error), label="")
            return cause.status
        return _tell(error, words)
    if status == 0 and _failed:
        say_error(f"the output could not be written: {_failed[0].strerror}.")
        return 1
    return status


def _tell(error: Exception, words: Callable[[str], str]) -> int:
    """Prints the reason of a failure; returns the exit status."""
    status = 1
    if isinstance(error, ShortVError):
        reason, status = str(error), 2 if isinstance(error, UsageError) else 1
    elif isinstance(error, MemoryError):
        reason = "out of memory; close other programs, or ask for less."
    elif isinstance(error, OSError) and error.errno:
        reason = f"{one_line(error)}."  # a disk, a network, a permission
    else:
        reason = (
            f"unexpected {type(error).__name__}: {one_line(error)}; "
            "this is a bug: run again with --debug and report it."
        )
    say_error(_with_notes(words(reason), error))
    return status


def _with_notes(reason: str, error: BaseException) -> str:
    notes = notes_of(error)
    return "; ".join([reason.rstrip("."), *notes]) if notes else reason


class _Record(logging.LogRecord):
    """What any library logs: one line that is safe to show, and no traceback."""

    def __init__(self, name: str, level: int, path: str, line: int, msg: Any, args: Any, exc_info: Any, *more: Any):
        super().__init__(name, level, path, line, msg, args, None, more[0] if more else None)

    def getMessage(self) -> str:
        return shown(without_secrets(super().getMessage()))


@contextmanager
def _no_tracebacks(debug: bool) -> Iterator[None]:
    """Tells failures in threads and finalizers, and those that libraries log, in one line, too."""
    before = threading.excepthook, sys.unraisablehook, logging.raiseExceptions
    factory = logging.getLogRecordFactory()
    if not debug:
        logging.setLogRecordFactory(_Record)
        threading.excepthook = lambda thread: say_error(
            f"{thread.exc_type.__name__}: {one_line(thread.exc_value)}", label="warning: "
        )
        sys.unraisablehook = lambda _: None
        logging.raiseExceptions = False
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook, logging.raiseExceptions = before
        logging.setLogRecordFactory(factory)


def _write_result(text: str) -> None:
    if is_main_process():
        _write(sys.stdout, text)


def _write(stream: TextIO | None, text: str) -> None:
    """Writes text. If nobody reads on, as after ``| head``, or the disk is full, the command goes on without."""
    if stream is None or stream.closed:
        return
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        if stream is sys.stdout and error.errno != errno.EPIPE:
            _failed.append(error)
        with suppress(OSError, ValueError):  # what is buffered goes nowhere, now and when Python ends
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty() and not os.environ.get("NO_COLOR")
