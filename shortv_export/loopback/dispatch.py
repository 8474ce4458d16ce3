"""Answering requests, on either origin."""

from __future__ import annotations

import contextlib
import traceback
from email.message import Message
from typing import IO
from urllib.parse import parse_qsl

from .account import Account
from .messages import Refusal, Reply, Request, json_reply
from .routes import commits, discussions, files, references, repositories, storage, uploads
from .routing import Call
from .state import HubState

_HUB_ROUTES = tuple(module.routes for module in (repositories, files, uploads, commits, references, discussions))
_STORAGE_ROUTES = (storage.routes,)


def answer_request(state: HubState, request: Request, headers: Message, body: IO[bytes], on_storage: bool) -> Reply:
    """Answers a request, and notes in `errors` what should not have happened."""
    # Not for the storage: under the lock, parallel transfers would wait for one another.
    with contextlib.nullcontext() if on_storage else state.lock:
        try:
            return _answer(state, request, headers, body, on_storage)
        except Refusal as refusal:
            if refusal.violation:
                state.errors.append(f"{request.method} {request.path}: {refusal}")
            return refusal.reply
        except Exception:  # a defect of this Hub, which must not look like one of the client
            state.errors.append(f"{request.method} {request.path}: {traceback.format_exc()}")
            return json_reply({"error": "Internal error"}, 500)


def _answer(state: HubState, request: Request, headers: Message, body: IO[bytes], on_storage: bool) -> Reply:
    authorization = headers.get("Authorization", "")
    if on_storage and authorization:
        raise Refusal(400, "A token was sent to the storage", violation=True)
    for routes in _STORAGE_ROUTES if on_storage else _HUB_ROUTES:
        if found := routes.find(request):
            answer, values = found
            query, account = dict(parse_qsl(request.query)), _account(state, authorization)
            return answer(Call(state, request, query, values, body, headers.get("Range", ""), account))
    raise Refusal(404, f"Unknown route: {request.method} {request.path}", violation=True)


def _account(state: HubState, authorization: str) -> Account | None:
    if not authorization:
        return None
    account = state.accounts.get(authorization.removeprefix("Bearer "))
    if account is None:
        raise Refusal(401, "Invalid credentials in Authorization header")
    return account
