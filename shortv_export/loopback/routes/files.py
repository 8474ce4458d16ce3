"""Listing and downloading files.

Large files are on a second origin, where a secret in the address replaces the token.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from typing import Any
from urllib.parse import parse_qs

from ..content import xet_hash
from ..messages import Refusal, Reply, json_reply
from ..repository import Commit
from ..routing import STORAGE, Call, route


@route("GET", "{api}/tree/{rev}(?:/{path})?")
def _tree(call: Call) -> Reply:
    folder = call.values.get("path", "").strip("/")
    inside = f"{folder}/" if folder else ""
    paths: set[str] = set()
    for path in call.commit.files:
        if path.startswith(inside):
            parts = path[len(inside) :].split("/")
            depths = range(1, len(parts) + 1) if call.query.get("recursive") == "true" else (1,)
            paths.update(inside + "/".join(parts[:depth]) for depth in depths)
    if folder and not paths:
        raise Refusal(404, f"{folder} does not exist on {call.values['rev']}", "EntryNotFound")
    return call.page([_path_info(call.commit, path) for path in sorted(paths)])


@route("POST", "{api}/paths-info/{rev}")
def _paths_info(call: Call) -> Reply:
    form = parse_qs(call.body.read().decode())
    found = (_path_info(call.commit, path.strip("/")) for path in form.get("paths", []))
    return json_reply([info for info in found if info is not None])


def _path_info(commit: Commit, path: str) -> dict[str, Any] | None:
    """Describes a file or folder; None if it does not exist."""
    if file := commit.files.get(path):
        info: dict[str, Any] = {"type": "file", "path": path, "size": file.size, "oid": file.oid}
        if file.lfs:
            info["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
            info["xetHash"] = xet_hash(file.sha256)
        return info
    if below := sorted((p, f.oid) for p, f in commit.files.items() if p.startswith(f"{path}/")):
        # Not git's tree id, but like that it changes with the folder's content.
        oid = hashlib.sha1(json.dumps(below).encode()).hexdigest()
        return {"type": "directory", "path": path, "size": 0, "oid": oid}
    return None


@route("GET", "/{key}/resolve/{rev}/{path}")
def _download(call: Call) -> Reply:
    call.check_gate()
    headers = {"X-Repo-Commit": call.commit.sha, "Accept-Ranges": "bytes"}
    file = call.commit.files.get(call.values["path"])
    if file is None:
        missing = Refusal(404, "Entry not found", "EntryNotFound")
        missing.reply.headers.update(headers)  # with the commit, clients can cache that the file is missing
        raise missing
    if file.lfs:
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
        # No X-Xet-Hash: with it, clients would download from Xet storage.
        return Reply(302, headers | {"Location": f"{call.hub.storage_url}/{file.sha256}"})
    return call.stored(file.sha256, headers | {"ETag": f'"{file.oid}"'})


@route("PUT", "/{object}", STORAGE)
def _put_object(call: Call) -> Reply:
    expected = _checked_sha256(call)
    sha256, _ = call.hub.content.store(call.body)
    if sha256 != expected:
        raise Refusal(400, f"The content has sha256 {sha256}", violation=True)
    call.hub.uploads.add(sha256)
    return Reply(200, {"ETag": f'"{sha256}"'})


@route("GET", "/{object}", STORAGE)
def _get_object(call: Call) -> Reply:
    sha256 = _checked_sha256(call)
    return call.stored(sha256, {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})


def _checked_sha256(call: Call) -> str:
    if not secrets.compare_digest(call.values["secret"], call.hub.secret):
        raise Refusal(403, "No such address", violation=True)
    return call.values["sha256"]
