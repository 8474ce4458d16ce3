"""Listing trees and downloading files."""

from __future__ import annotations

import hashlib
import json
from typing import Any
from urllib.parse import parse_qs

from ..content import xet_hash
from ..messages import Refusal, Reply, json_reply
from ..repository import Commit
from ..routing import Call, Routes

routes = Routes()


@routes("GET", "{api}/tree/{rev}(?:/{path})?")
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


@routes("POST", "{api}/paths-info/{rev}")
def _paths_info(call: Call) -> Reply:
    form = parse_qs(call.body.read().decode())
    found = (_path_info(call.commit, path.strip("/")) for path in form.get("paths", []))
    return json_reply([info for info in found if info is not None])


def _path_info(commit: Commit, path: str) -> dict[str, Any] | None:
    """What the Hub says of a file or folder; None if there is neither."""
    info: dict[str, Any]
    if file := commit.files.get(path):
        info = {"type": "file", "path": path, "size": file.size, "oid": file.oid}
        if file.lfs:
            info["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
            info["xetHash"] = xet_hash(file.sha256)
    elif below := sorted((p, f.oid) for p, f in commit.files.items() if p.startswith(f"{path}/")):
        # In place of git's tree id: like that, it changes exactly when the folder's content does.
        oid = hashlib.sha1(json.dumps(below).encode()).hexdigest()
        info = {"type": "directory", "path": path, "size": 0, "oid": oid}
    else:
        return None
    return info


@routes("GET", "/{key}/resolve/{rev}/{path}")
def _download(call: Call) -> Reply:
    call.check_gate()
    headers = {"X-Repo-Commit": call.commit.sha, "Accept-Ranges": "bytes"}
    file = call.commit.files.get(call.values["path"])
    if file is None:
        missing = Refusal(404, "Entry not found", "EntryNotFound")
        missing.reply.headers.update(headers)  # clients remember by the commit that the file is missing
        raise missing
    if file.lfs:
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
        # No X-Xet-Hash: with it the client would fetch the content from Xet storage.
        return Reply(302, headers | {"Location": f"{call.state.storage_url}/{file.sha256}"})
    return call.stored(file.sha256, headers | {"ETag": f'"{file.oid}"'})
