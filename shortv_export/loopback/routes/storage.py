"""The second origin, which has the content of large files. A secret in the address takes the place of a token."""

from __future__ import annotations

import secrets

from ..messages import Refusal, Reply
from ..routing import Call, Routes

routes = Routes()


@routes("GET", "/{object}")
def _get_object(call: Call) -> Reply:
    sha256 = _admitted(call)
    return call.stored(sha256, {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})


@routes("PUT", "/{object}")
def _put_object(call: Call) -> Reply:
    expected = _admitted(call)
    sha256, _ = call.state.content.store(call.body)
    if sha256 != expected:
        raise Refusal(400, f"The content has sha256 {sha256}", violation=True)
    call.state.uploads.add(sha256)
    return Reply(200, {"ETag": f'"{sha256}"'})


def _admitted(call: Call) -> str:
    """The sha256 that an address names, if its secret is right."""
    if not secrets.compare_digest(call.values["secret"], call.state.secret):
        raise Refusal(403, "No such address", violation=True)
    return call.values["sha256"]
