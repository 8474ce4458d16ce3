"""A limit of time for the head of an answer, also where it comes byte by byte.

httpx waits so long for the next bytes. So one byte now and then would be waited for without end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_phase = threading.local()


@contextmanager
def heads_in_time() -> Iterator[None]:
    """What this thread reads inside the context is the head of an answer: it takes no longer than a silent Hub may."""
    _phase.is_head = True
    try:
        yield
    finally:
        _phase.is_head = False


def limit_heads(client: Any) -> None:
    """Makes `heads_in_time` hold for an httpx client."""
    for transport in (client._transport, *client._mounts.values()):
        pool: Any = getattr(transport, "_pool", None)
        if hasattr(pool, "_network_backend"):
            pool._network_backend = _Backend(pool._network_backend)


class _Backend:
    """Opens connections, as the backend of httpcore that it stands before."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def connect_tcp(self, *args: Any, **options: Any) -> _Stream:
        return _Stream(self._backend.connect_tcp(*args, **options))

    def connect_unix_socket(self, *args: Any, **options: Any) -> _Stream:
        return _Stream(self._backend.connect_unix_socket(*args, **options))


class _Stream:
    """A connection; knows when the answer to what was written last was first waited for."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._since: float | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def start_tls(self, *args: Any, **options: Any) -> _Stream:
        return _Stream(self._stream.start_tls(*args, **options))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._since = None
        self._stream.write(buffer, timeout)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if timeout is not None and getattr(_phase, "is_head", False):
            now = time.monotonic()
            self._since = now if self._since is None else self._since
            timeout = max(self._since + timeout - now, 0.001)
        content: bytes = self._stream.read(max_bytes, timeout)
        return content
