"""Servers in processes of their own, for as long as a test needs them."""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def serving(
    command: Sequence[object], port: int, folder: Path, environment: Mapping[str, str], health: str = "/health"
) -> Iterator[tuple[str, Path]]:
    """Starts a server and waits until it answers; ends it, also where the test's time is over.

    Args:
        command: its words.
        port: on which it listens.
        folder: in which it runs; its output goes to ``log.txt`` there.
        environment: all variables.
        health: a path that it answers once it is ready.

    Yields:
        Its address, and the file with its output.
    """
    address, log = f"http://127.0.0.1:{port}", folder / "log.txt"
    with (
        log.open("w") as output,
        subprocess.Popen(
            list(map(str, command)), env=dict(environment), stdout=output, stderr=subprocess.STDOUT, cwd=folder
        ) as process,
    ):
        try:
            while not _answers(f"{address}{health}"):
                assert process.poll() is None, log.read_text()[-5000:]
                time.sleep(0.5)
            yield address, log
        finally:
            process.terminate()


def _answers(url: str) -> bool:
    try:
        return bool(urllib.request.urlopen(url, timeout=5))
    except OSError:
        return False
