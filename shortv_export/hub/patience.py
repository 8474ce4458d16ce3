"""How long the Hub is waited for, and what is said meanwhile."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote

from huggingface_hub import constants
from huggingface_hub.utils import httpx

from ..errors import one_line

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
SILENT = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError)
"""What the client raises if no answer arrives."""

_LARGE_BODY = 1 << 20  # bytes; while more is sent, a progress bar is on the screen
_REPOSITORY = re.compile(r"/api/(model|dataset|space)s/([^/]+/[^/]+)|/(?:(dataset|space)s/)?([^/]+/[^/]+)/resolve/")


class NoAnswer(httpx.HTTPError):
    """The Hub does not answer, for longer than anybody waits."""


class Silence:
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

    def give_up(self, error: Exception, request: httpx.Request) -> None:
        """After one more failure, raises `NoAnswer` if there were enough. huggingface_hub then does not try again.

        The first is left as it is: after a time-out, huggingface_hub looks into its cache.
        """
        self.failed = time.monotonic()
        self.failures += 1
        seconds = self.failed - (self.silent_since or self.failed)
        if seconds >= NOTICE_SECONDS and not isinstance(error, httpx.TimeoutException):  # which has been told
            _tell(request)
        if self.failures > 1 and seconds >= PATIENCE_SECONDS:
            waited = isinstance(error, httpx.TimeoutException)
            raise NoAnswer(f"no answer in {seconds:.0f} seconds" if waited else one_line(error)) from error

    def refuse(self, response: httpx.Response) -> None:
        """The Hub refuses a request that is tried again. Says so if that takes long."""
        status, subject, now = response.status_code, _subject(response.request), time.monotonic()
        if (seconds := int(response.headers.get("Retry-After", 0))) >= NOTICE_SECONDS:
            logger.warning("waiting %d seconds, as the Hub asks (%s) ...", seconds, subject)
        if now - self.refused > LONGEST_WAIT + NOTICE_SECONDS:
            self.refused_since = now
        self.refused = now
        if now - self.refused_since >= NOTICE_SECONDS:
            logger.warning("waiting for the Hub (%s), which answers with status %d ...", subject, status)
            self.refused_since = now


silence = Silence()


def set_timeouts(request: httpx.Request) -> None:
    """Limits how long a request may take, also where huggingface_hub sets no limit."""
    asked, size = request.extensions.get("timeout") or {}, _size(request)
    left = silence.begin()
    # A server may look at what it got before it answers.
    read = READ_SECONDS if not size else READ_SECONDS + size / 50e6
    limits = {"connect": CONNECT_SECONDS, "read": read, "write": READ_SECONDS, "pool": READ_SECONDS}
    most = left if size <= _LARGE_BODY else read
    request.extensions = {
        **request.extensions,
        "timeout": {name: min(asked.get(name) or limit, limit, most) for name, limit in limits.items()},
    }


@contextmanager
def notice(request: httpx.Request) -> Iterator[None]:
    """Says what is being waited for, if it takes long."""
    timer = threading.Timer(NOTICE_SECONDS, _tell, [request])
    timer.daemon = True
    if _size(request) <= _LARGE_BODY:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _tell(request: httpx.Request) -> None:
    # Libraries ask others, too, such as a counter of downloads, and go on without.
    if request.url.host == httpx.URL(constants.ENDPOINT).host:
        logger.warning("waiting for the Hub (%s) ...", _subject(request))


def _subject(request: httpx.Request) -> str:
    """What a request is about, such as ``model acme/base``."""
    found = _REPOSITORY.match(request.url.path)
    if found is None:
        return str(request.url.host)
    kind, name = (found[1], found[2]) if found[2] else (found[3] or "model", found[4])
    return f"{kind} {unquote(name)}"


def _size(request: httpx.Request) -> int:
    return int(request.headers.get("Content-Length") or 0)
