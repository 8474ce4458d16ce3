"""The HTTP server: it reads requests, sends replies and makes requests fail on demand."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .content import CHUNK
from .messages import Reply, Request, json_reply
from .routing import answer_request

if TYPE_CHECKING:
    from .hub import LoopbackHub


@dataclass
class Fault:
    """The matching requests from the `first` to the `last`, counted from 1, fail. See `LoopbackHub.fail`."""

    match: Callable[[Request], bool]
    first: int
    last: int
    status: int
    when: str
    action: str
    seconds: float
    retry_after: int | None = None
    struck: threading.Event = field(default_factory=threading.Event)
    seen: int = 0

    def strikes(self, request: Request) -> bool:
        if not self.match(request):
            return False
        self.seen += 1
        return self.first <= self.seen <= self.last


_NO_FAULT = Fault(lambda _: False, 0, 0, 0, "", "", 0.0)


class Server(ThreadingHTTPServer):
    """One origin: the Hub's own, or that of its storage."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, hub: LoopbackHub, storage: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        # A small buffer, so that a client cannot send much more than the Hub reads.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
        self.hub = hub
        self.storage = storage
        self.stopped = threading.Event()
        self.connections: set[socket.socket] = set()

    def start(self) -> Server:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Stops answering and closes the open connections."""
        self.stopped.set()
        self.shutdown()
        self.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are sent separately; the body must not wait for an ACK
    server: Server

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, ValueError):  # the client disconnected, or `stop` was called
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:
        """Prints nothing: `requests` is the log."""

    def _serve(self) -> None:
        path, _, query = self.path.partition("?")
        request = Request(self.command, path, query, int(self.headers.get("Content-Length") or 0))
        fault = self._log(request)
        before, after = (fault.action if fault.when == when else "" for when in ("before", "after"))
        if before == "stall":
            self.server.stopped.wait(fault.seconds)
        if before == "drop":
            fault.struck.set()
            return self._drop()
        if fault.when == "during":
            return self._break_off(request, fault)
        with tempfile.SpooledTemporaryFile(max_size=CHUNK) as body:
            self._read(request, body)
            if before not in ("status", "hang", "page"):
                reply = answer_request(self.server.hub, request, self.headers, body, self.server.storage)
        fault.struck.set()
        if "hang" in (before, after):
            self.connection.recv(1, socket.MSG_PEEK)  # returns when the client, or `stop`, closes the connection
            return self._drop()
        if "status" in (before, after):
            headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            reply = json_reply({"error": "Injected fault"}, fault.status, headers)
        if "page" in (before, after):
            reply = Reply(200, {"Content-Type": "text/html"}, b"<html><body>Log in to the network</body></html>")
        if after == "stall":
            self.server.stopped.wait(fault.seconds)
        breaks_off = after == "cut" or (after == "drop" and request.method == "GET" and reply.length > 1)
        if after == "drop" and not breaks_off:
            return self._drop()
        request.status = reply.status
        self._send(reply, halfway=breaks_off)
        if breaks_off:
            self._drop()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _log(self, request: Request) -> Fault:
        """Logs a request; returns the first fault that strikes it."""
        with self.server.hub.lock:
            self.server.hub.requests.append(request)
            # Every fault sees the request, so that each can count.
            striking = [fault for fault in self.server.hub.faults if fault.strikes(request)]
        return striking[0] if striking else _NO_FAULT

    def _break_off(self, request: Request, fault: Fault) -> None:
        """Reads half of the body, then drops the connection, at once or after a while."""
        half = request.received // 2
        request.received = 0
        while request.received < half and (chunk := self.rfile.read(min(half - request.received, CHUNK))):
            request.received += len(chunk)
        fault.struck.set()
        if fault.action == "hang":
            self.server.stopped.wait(fault.seconds)
        self._drop()

    def _read(self, request: Request, body: IO[bytes]) -> None:
        """Reads the whole body first, so that the Hub never waits for a client while it holds its lock."""
        if "Transfer-Encoding" in self.headers:  # refused by the Hub's storage too
            self.server.hub.errors.append(f"{request.method} {request.path}: a body of unknown length")
            raise ConnectionError("the body has no length")
        left = request.received
        while left and (chunk := self.rfile.read(min(left, CHUNK))):
            body.write(chunk)
            left -= len(chunk)
        if left:
            raise ConnectionError("the client disconnected")
        body.seek(0)

    def _send(self, reply: Reply, halfway: bool) -> None:
        self.send_response(reply.status)
        length = reply.length if isinstance(reply.body, Path) else len(reply.body)
        for name, value in {**reply.headers, "Content-Length": str(length)}.items():
            self.send_header(name, value.encode("ascii", "replace").decode())
        self.end_headers()
        if self.command == "HEAD" or not length:
            return
        if isinstance(reply.body, bytes):
            self.wfile.write(reply.body[: length // 2] if halfway else reply.body)
        else:
            with reply.body.open("rb") as file:
                self.connection.sendfile(file, reply.start, length // 2 if halfway else length)

    def _drop(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
