"""The HTTP client that huggingface_hub uses here: it waits for a limited time, and takes only answers that make sense.

huggingface_hub itself waits without end, and takes apart whatever arrives. Here, what does not look like an answer of
the Hub ends at once, as `BadAnswer`; and a Hub that stays silent, as `NoAnswer`. No caller needs to know.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from huggingface_hub import set_client_factory
from huggingface_hub.utils import _http, httpx

from ..errors import one_line
from ..processes import stopping
from .answers import check_answer, error_answer

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
"""The longest wait for the next bytes of an answer."""
PATIENCE_SECONDS = 30.0
"""After so long without any answer, nothing is tried again."""
NOTICE_SECONDS = 10.0
"""After so long, the user is told what is being waited for."""
LONGEST_WAIT = 60
"""Seconds: the longest wait that the Hub may ask for."""
TRANSIENT = {408, 429, 500, 502, 503, 504}
"""Statuses after which another try may help."""

_ANSWER_SECONDS = 60.0  # for an answer that is read whole
_MOST_BYTES = 64 << 20  # of such an answer
_MOST_BYTES_OF_UNKNOWN_LENGTH = 256 << 20  # of a download; the Hub tells the length of large files
_SLOWEST = 100  # bytes per second of a download
_SLOW_SECONDS = 60.0  # before its speed is looked at
_LARGE_BODY = 1 << 20  # bytes; while more is sent, a progress bar is on the screen
_MOST_REPEATED, _MOST_PAGES = 50, 2000  # in a minute
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ETAG = re.compile(r'(W/)?"?[^"/\\\x00-\x20]{1,200}"?')
_NUMBER = re.compile(r"[0-9]{1,18}")
_REPOSITORY = re.compile(r"/api/(model|dataset|space)s/([^/]+/[^/]+)|/(?:(dataset|space)s/)?([^/]+/[^/]+)/resolve/")


_SILENT = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError)


class NoAnswer(httpx.HTTPError):
    """The Hub does not answer, for longer than anybody waits."""


class BadAnswer(httpx.HTTPError):
    """What arrived is no answer of the Hub."""


class _Patience:
    """How long there has been no good answer, over all requests of this process."""

    def __init__(self) -> None:
        self.silent_since: float | None = None  # the first of the requests without an answer
        self.failed = 0.0  # when the last of them failed
        self.failures = 0
        self.refused_since = 0.0  # the first of the refusals that may pass
        self.refused = 0.0  # the last of them

    def begin(self) -> float:
        """A request is sent; returns how long it may wait."""
        now = time.monotonic()
        if self.silent_since is None or now - self.failed > PATIENCE_SECONDS:
            self.end()
            self.silent_since = self.failed = now
        return max(PATIENCE_SECONDS - (now - self.silent_since), PATIENCE_SECONDS / 6)

    def end(self) -> None:
        """Something has arrived."""
        self.silent_since = None
        self.failures = 0

    def give_up(self, error: Exception, subject: str) -> None:
        """After one more failure, raises `NoAnswer` if there were enough. huggingface_hub then does not try again.

        The first is left as it is: after a time-out, huggingface_hub looks into its cache.
        """
        self.failed = time.monotonic()
        self.failures += 1
        seconds = self.failed - (self.silent_since or self.failed)
        if seconds >= NOTICE_SECONDS and not isinstance(error, httpx.TimeoutException):  # which has been told
            logger.warning("waiting for the Hub (%s) ...", subject)
        if self.failures > 1 and seconds >= PATIENCE_SECONDS:
            waited = isinstance(error, httpx.TimeoutException)
            raise NoAnswer(f"no answer in {seconds:.0f} seconds" if waited else one_line(error)) from error

    def refuse(self, status: int, subject: str) -> None:
        """Says so if the Hub has been refusing requests for long; they are tried again."""
        now = time.monotonic()
        if now - self.refused > LONGEST_WAIT + NOTICE_SECONDS:
            self.refused_since = now
        self.refused = now
        if now - self.refused_since >= NOTICE_SECONDS:
            logger.warning("waiting for the Hub (%s), which answers with status %d ...", subject, status)
            self.refused_since = now


_patience = _Patience()


class Client(httpx.Client):
    """An `httpx.Client` with the limits of this module."""

    def send(self, request: httpx.Request, *, stream: bool = False, **options: Any) -> httpx.Response:
        """Sends a request.

        Raises:
            NoAnswer: there has been no answer for too long, or the command is being stopped.
            BadAnswer: what arrived is no answer of the Hub.
        """
        if stopping.is_set():
            raise NoAnswer("the command was stopped")
        _count_pages(request)
        size = int(request.headers.get("Content-Length") or 0)
        _set_timeouts(request, size)
        try:
            with _notice(request, silent=size > _LARGE_BODY):
                response = super().send(request, stream=True, **options)
                if stream and response.is_success:
                    return response
                return _read(request, response)
        except _SILENT as error:
            _patience.give_up(error, _subject(request))
            raise
        except (httpx.HTTPError, OSError):
            raise
        except Exception as error:  # of httpx, over addresses and headers
            raise BadAnswer(one_line(error)) from error


def prepare() -> None:
    """Makes huggingface_hub use this client, unless the program has one of its own."""
    default = _http.default_client_factory
    if getattr(_http, "_GLOBAL_CLIENT_FACTORY", default) is default:
        set_client_factory(_client)


def _client() -> Client:
    with _http.default_client_factory() as default:
        hooks = default.event_hooks
        redirects = default.follow_redirects
    hooks = {**hooks, "response": [*hooks["response"], _watch]}
    return Client(event_hooks=hooks, follow_redirects=redirects, timeout=None)


def _set_timeouts(request: httpx.Request, size: int) -> None:
    asked = request.extensions.get("timeout") or {}
    patience = _patience.begin()
    # A server may look at what it got before it answers.
    read = READ_SECONDS if not size else READ_SECONDS + size / 50e6
    limits = {"connect": CONNECT_SECONDS, "read": read, "write": READ_SECONDS, "pool": READ_SECONDS}
    most = patience if size <= _LARGE_BODY else read
    request.extensions = {
        **request.extensions,
        "timeout": {name: min(asked.get(name) or limit, limit, most) for name, limit in limits.items()},
    }


@contextmanager
def _notice(request: httpx.Request, silent: bool) -> Iterator[None]:
    """Says what is being waited for, if it takes long."""
    timer = threading.Timer(NOTICE_SECONDS, logger.warning, ["waiting for the Hub (%s) ...", _subject(request)])
    timer.daemon = True
    if not silent:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _subject(request: httpx.Request) -> str:
    found = _REPOSITORY.match(request.url.path)
    if found is None:
        return str(request.url.host)
    kind, name = (found[1], found[2]) if found[2] else (found[3] or "model", found[4])
    return f"{kind} {unquote(name)}"


_pages: dict[str, tuple[float, int]] = {}


def _count_pages(request: httpx.Request) -> None:
    """Ends a list without end, such as one whose next page is the same page again."""
    if "cursor" not in request.url.params:
        return
    now = time.monotonic()
    for key, most in ((str(request.url), _MOST_REPEATED), (request.url.path, _MOST_PAGES)):
        since, count = _pages.get(key, (now, 0))
        _pages[key] = (since, count + 1) if now - since < 60 else (now, 1)
        if _pages[key][1] > most:
            raise BadAnswer("it is a list without end")


def _watch(response: httpx.Response) -> None:
    """Looks at the head of an answer, and at its body while that is read. For each answer, redirections, too."""
    headers = response.headers
    for name in ("Retry-After", "RateLimit"):
        if name in headers:
            seconds = re.search(r"^([0-9]{1,9})$|;\s*t=([0-9]{1,9})\b", headers[name])
            if seconds is None:
                del headers[name]
            elif int(seconds[1] or seconds[2]) > LONGEST_WAIT:
                del headers[name]
                headers["Retry-After"] = str(LONGEST_WAIT)
    patterns = {"Content-Length": _NUMBER, "X-Linked-Size": _NUMBER, "X-Repo-Commit": _COMMIT}
    for name, pattern in {**patterns, "ETag": _ETAG, "X-Linked-ETag": _ETAG}.items():
        if name in headers and not pattern.fullmatch(headers[name]):
            raise BadAnswer(f"its {name} is {headers[name]!r:.60}")
    try:
        urlsplit(urljoin(str(response.request.url), headers.get("Location", "")))
    except ValueError as error:
        raise BadAnswer(f"its Location: {error}") from None
    response.stream = _Watched(response)


class _Watched(httpx.SyncByteStream):
    """The body of an answer, with an end."""

    def __init__(self, response: httpx.Response) -> None:
        self.stream: Any = response.stream
        self.subject = _subject(response.request)
        self.most = None if "Content-Length" in response.headers else _MOST_BYTES_OF_UNKNOWN_LENGTH

    def __iter__(self) -> Iterator[bytes]:
        started, size = time.monotonic(), 0
        try:
            for chunk in self.stream:
                if stopping.is_set():
                    raise NoAnswer("the command was stopped")
                size += len(chunk)
                if self.most is not None and size > self.most:
                    raise BadAnswer("it has no end")
                if (seconds := time.monotonic() - started) > _SLOW_SECONDS and size < _SLOWEST * seconds:
                    raise NoAnswer(f"{size} bytes in {seconds:.0f} seconds")
                _patience.end()
                yield chunk
        except _SILENT as error:
            _patience.give_up(error, self.subject)
            raise
        _patience.end()

    def close(self) -> None:
        self.stream.close()


def _read(request: httpx.Request, response: httpx.Response) -> httpx.Response:
    """Reads an answer whole, and checks it."""
    path = request.url.path
    bounded = response.is_error or path.startswith("/api/") or path.endswith("/objects/batch")
    deadline, chunks, size = time.monotonic() + _ANSWER_SECONDS, [], 0
    try:
        for chunk in response.iter_bytes():
            chunks.append(chunk)
            size += len(chunk)
            if bounded and (size > _MOST_BYTES or time.monotonic() > deadline):
                raise BadAnswer("it has no end")
    except httpx.DecodingError as error:
        raise BadAnswer(one_line(error)) from error
    finally:
        response.close()
    content, headers = b"".join(chunks), response.headers.multi_items()
    if request.method != "HEAD":
        if response.is_error:
            content = error_answer(content)
            if response.status_code in TRANSIENT:
                _patience.refuse(response.status_code, _subject(request))
        elif not response.is_success:
            raise BadAnswer(f"its status is {response.status_code}")
        elif problem := check_answer(request.method, path, content):
            raise BadAnswer(problem)
        left_out = ("content-encoding", "content-length", "transfer-encoding")  # of the body as it was sent
        headers = [(name, value) for name, value in headers if name.lower() not in left_out]
    status = response.status_code
    if status == 409 and b"another conflicting operation is in progress" in content:
        status = 503  # huggingface_hub would ask again at once, without end
    whole = httpx.Response(status, headers=headers, content=content, request=response.request)
    whole.history = response.history
    return whole
