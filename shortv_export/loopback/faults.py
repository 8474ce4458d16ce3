"""Requests that are made to go wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .messages import Request


@dataclass
class Fault:
    """See `LoopbackHub.fail`. It strikes the `first` to the `last` request that matches, counted from 1."""

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


def striking(faults: Sequence[Fault], request: Request) -> Fault:
    """The first fault that strikes a request, or one that does nothing."""
    found = [each for each in faults if each.strikes(request)]  # asks all of them, so that each keeps count
    return found[0] if found else _NO_FAULT


_NO_FAULT = Fault(lambda _: False, 0, 0, 0, "", "", 0.0)
