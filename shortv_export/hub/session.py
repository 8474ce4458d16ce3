"""The HTTP client that huggingface_hub uses here: it waits for a limited time, and takes only answers that make sense.

huggingface_hub itself waits without end, and takes apart whatever arrives. Here, what does not look like an answer of
the Hub ends at once, as `BadAnswer`; and a Hub that stays silent, as `NoAnswer`. No caller needs to know.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin, urlsplit

from huggingface_hub import set_client_factory
from huggingface_hub.utils import _http, httpx

from ..errors import one_line
from ..processes import stopping
from .answers import check_answer, error_answer
from .heads import heads_in_time, limit_heads
from .patience import LONGEST_WAIT, SILENT, NoAnswer, notice, set_timeouts, silence

TRANSIENT = {408, 429, 500, 502, 503, 504}
"""Statuses after which another try may help."""

_ANSWER_SECONDS = 60.0  # for an answer that is read whole
_MOST_BYTES = 64 << 20  # of such an answer
_MOST_BYTES_OF_UNKNOWN_LENGTH = 256 << 20  # of a download; the Hub tells the length of large files
_SLOWEST = 100  # bytes per second of a download
_SLOW_SECONDS = 60.0  # before its speed is looked at
_MOST_REPEATED, _MOST_PAGES = 50, 2000  # in a minute
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ETAG = re.compile(r'(W/)?"?[^"/\\\x00-\x20]{1,200}"?')
_NUMBER = re.compile(r"[0-9]{1,18}")


class BadAnswer(httpx.HTTPError):
    """What arrived is no answer of the Hub."""


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
        set_timeouts(request)
        try:
            with notice(request):
                with heads_in_time():
                    response = super().send(request, stream=True, **options)
                if stream and response.is_success:
                    return response
                return _read(request, response)
        except SILENT as error:
            silence.give_up(error, request)
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
    client = Client(event_hooks=hooks, follow_redirects=redirects, timeout=None)
    limit_heads(client)
    return client


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
        self.request = response.request
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
                silence.end()
                yield chunk
        except SILENT as error:
            silence.give_up(error, self.request)
            raise
        silence.end()

    def close(self) -> None:
        self.stream.close()


def _asks_for_fields(request: httpx.Request) -> bool:
    return request.method == "GET" and any(name.startswith("expand") for name in request.url.params)


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
                silence.refuse(response)
        elif not response.is_success:
            raise BadAnswer(f"its status is {response.status_code}")
        elif problem := check_answer(request.method, path, content, partial=_asks_for_fields(request)):
            raise BadAnswer(problem)
        left_out = ("content-encoding", "content-length", "transfer-encoding")  # of the body as it was sent
        headers = [(name, value) for name, value in headers if name.lower() not in left_out]
    status = response.status_code
    if status == 409 and b"another conflicting operation is in progress" in content:
        status = 503  # huggingface_hub would ask again at once, without end
    whole = httpx.Response(status, headers=headers, content=content, request=response.request)
    whole.history = response.history
    return whole
