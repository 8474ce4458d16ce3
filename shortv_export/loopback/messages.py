"""Requests, replies and refusals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Request:
    """One request as the Hub received it."""

    method: str
    path: str  # as sent: percent-encoded, without the query
    query: str = ""
    received: int = 0  # bytes of its body
    status: int = 0  # of the answer; 0 if the connection was dropped instead


@dataclass
class Reply:
    """One answer. If `body` is a file, `length` bytes from `start` on are sent."""

    status: int
    headers: dict[str, str]
    body: bytes | Path = b""
    start: int = 0
    length: int = 0


class Refusal(Exception):
    """An answer other than success. A correct client never gets a `violation`, so it is added to `errors`."""

    def __init__(self, status: int, message: str, code: str = "", violation: bool = False, **body: Any) -> None:
        super().__init__(message)
        self.violation = violation
        headers = {"X-Error-Message": message.replace("\n", " "), **({"X-Error-Code": code} if code else {})}
        self.reply = json_reply({"error": message, **body}, status, headers)


def json_reply(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    body = json.dumps(data).encode()
    return Reply(status, {"Content-Type": "application/json; charset=utf-8", **(headers or {})}, body)
