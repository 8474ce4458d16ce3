"""What runs in the process of a `Worker`: one call after another, within limits."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import Any

from ..errors import ShortVError, one_line

# Packages that some bases need and that this package does not require.
_PACKAGES = ("torchvision", "timm", "num2words", "sentencepiece", "tiktoken")
_PROSE = (ValueError, OSError, ImportError, RuntimeError)  # exceptions whose messages are sentences
_report: Callable[[Any], None] | None = None


def entering(part: str, failing: str = "fails") -> None:
    """Names the part of a base that runs from here on, and what it does if it raises an exception.

    Outside the process of a `Worker`, this does nothing.
    """
    if _report is not None:
        _report(("part", part, failing))


def packed(value: Any) -> tuple[bytes, list[memoryview]]:
    """A value as bytes, and its arrays as they lie in memory: 3 ms for the 7 MB of a picture in five tiles."""
    buffers: list[pickle.PickleBuffer] = []
    content = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return content, [buffer.raw() for buffer in buffers]


def send(connection: Connection, content: tuple[bytes, list[memoryview]]) -> None:
    message, arrays = content
    connection.send((message, [array.nbytes for array in arrays]))
    for array in arrays:
        connection.send_bytes(array)


def receive(connection: Connection) -> Any:
    content, sizes = connection.recv()
    buffers = [bytearray(size) for size in sizes]
    for buffer in buffers:
        connection.recv_bytes_into(buffer)
    return pickle.loads(content, buffers=buffers)


def serve(connection: Connection, memory: int, make: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Answers calls until the caller is gone.

    Args:
        connection: to the caller.
        memory: bytes that this process may take besides what it starts with.
        make: called first, with `args`; each function gets what it returns.
    """
    global _report

    def report(message: Any) -> None:
        send(connection, packed(message))

    _confine(connection.fileno(), memory)
    _report = report
    made: list[Any] = []
    with suppress(EOFError, OSError):
        while True:
            function, call = receive(connection)
            try:
                made = made or [make(*args)]
                answer = packed(("value", function(made[0], *call)))
            except BaseException as error:  # SystemExit, and panics of Rust, which are no `Exception`
                answer = packed(_failed(error))
            send(connection, answer)
    os._exit(0)


def _failed(error: BaseException) -> tuple[str, str, str]:
    """The kind of an exception, its text in one line, and its traceback."""
    if isinstance(error, MemoryError):
        traceback.clear_frames(error.__traceback__)  # frees what filled the memory
        return "memory", "", ""
    trace = traceback.format_exc()
    text = one_line(error).encode("utf-8", "backslashreplace").decode()  # half a character of a base cannot be shown
    if isinstance(error, ShortVError):
        return "refused", str(error), trace
    if "allocate memory" in text:  # PyTorch
        return "memory", text, trace
    for package in _PACKAGES:
        if package in str(error).lower() and find_spec(package) is None:
            return "package", package, trace
    if not isinstance(error, _PROSE) or isinstance(error, RecursionError):
        text = f"{type(error).__name__}: {text}"
    return "failed", text, trace


def _confine(connection: int, memory: int) -> None:
    """Bounds this process: its memory, one thread, no network, no output, none of the caller's files."""
    import torch
    from huggingface_hub import constants

    if sys.platform == "linux":
        import ctypes
        import resource

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it dies with its parent
        pages = int(open("/proc/self/statm").read().split()[0])  # noqa: SIM115
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for handle in {int(name) for name in os.listdir("/proc/self/fd")} - {0, 1, 2, connection}:
            with suppress(OSError):  # that of the listing
                os.close(handle)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller decides when an interruption ends it
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    # What libraries print would mix with the caller's own output.
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (1, 2):
        os.dup2(sys.stdout.fileno(), stream)
    gc.freeze()  # objects of the caller are never collected here, nor do they close anything
    torch.set_num_threads(1)  # the threads of the caller do not exist here
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    constants.HF_HUB_OFFLINE = True
