"""Answers that are not the Hub's: other JSON, no JSON, other statuses and headers, half of it, or without end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

SLOW = ("silence", "silent-body", "endless", "endless-json", "drip", "drip-head")
"""Faults that last until a time-out."""

# Answers that are not what was asked for, whatever that was.
BODIES: dict[str, bytes] = {
    "null": b"null",
    "list": b"[]",
    "object": b"{}",
    "text": b'"text"',
    "number": b"5",
    "list-of-null": b"[null]",
    "list-of-lists": b"[[]]",
    "nothing": b"",
    "page": b"<!doctype html><title>Welcome to the hotel</title>",
    "not-utf-8": b'{"id": "\xff\xfe"}',
    "deep": b"[" * 100_000,
    "many-digits": b"9" * 10_000,
    "nan": b'{"size": NaN}',
}
HEADERS: dict[str, tuple[int, dict[str, str], bytes]] = {
    "500-list": (500, {}, b"[1]"),
    "500-number": (500, {}, b'{"error": 5, "errors": 7}'),
    "500-not-utf-8": (500, {}, b"\xff\xfe\xff"),
    "404-null": (404, {}, b"null"),
    "403-page": (403, {"Content-Type": "text/html"}, b"<html>no</html>"),
    "409-nothing": (409, {}, b"{}"),
    "409-busy": (409, {}, b'{"error": "Cannot create repo: another conflicting operation is in progress"}'),
    "304": (304, {}, b""),
    "302-nowhere": (302, {}, b"{}"),
    "302-no-address": (302, {"Location": "http://[::1"}, b"{}"),
    "302-loop": (302, {"Location": "."}, b"{}"),
    "429-superscript": (429, {"Retry-After": "\u00b2"}, b"{}"),
    "429-negative": (429, {"Retry-After": "-5"}, b"{}"),
    "429-forever": (429, {"Retry-After": "1000000000"}, b"{}"),
    "429-date": (429, {"Retry-After": "Wed, 21 Oct 2115 07:28:00 GMT"}, b"{}"),
    "429-limit": (429, {"RateLimit": '"api";r=0;t=999999999999'}, b"{}"),
    "bad-gzip": (200, {"Content-Encoding": "gzip"}, b"not gzip"),
    "bad-commit": (200, {"X-Repo-Commit": "../../x", "ETag": '"a"'}, b"{}"),
    "bad-etag": (200, {"X-Repo-Commit": "a" * 40, "ETag": "../../x"}, b"{}"),
    "bad-size": (200, {"X-Repo-Commit": "a" * 40, "ETag": '"a"', "X-Linked-Size": "\u00b2"}, b"{}"),
    "warning": (200, {"X-HF-Warning": "x; \x1b[31mred"}, b"null"),
}
_RAW = ("garbage", "closed", "half", "more-than-announced", *SLOW)
FAULTS = (*BODIES, *HEADERS, *_RAW)


def wrong_fields(body: bytes) -> Iterator[bytes]:
    """JSON in which one field, or one of an item of a list, is missing or of another type."""
    answer = json.loads(body)
    for path in _paths(answer):
        *above, last = path
        for other in (..., None, 5, -1, "text", "\x1b[31m\u202e", True, [], {}, [None]):
            copy = json.loads(body)
            place = copy
            for key in above:
                place = place[key]
            if other is ...:
                del place[last]
            else:
                place[last] = other
            if copy != answer:
                yield json.dumps(copy).encode()


def _paths(value: Any) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, inner in items:
        yield (key,)
        yield from ((key, *path) for path in _paths(inner))
