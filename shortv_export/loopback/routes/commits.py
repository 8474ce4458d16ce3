"""Making commits, with or without a pull request, and listing them."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

from ..card_metadata import front_matter
from ..messages import Refusal, Reply, json_reply
from ..repository import Commit, File
from ..routing import Call, Routes

routes = Routes()


@routes("GET", "{api}/commits/{rev}")
def _commits(call: Call) -> Reply:
    history = [
        {"id": each.sha, "title": each.message, "message": each.description, "date": each.date}
        | {"authors": [{"user": each.author}]}
        for each in call.repo.history(call.commit)
    ]
    return call.page(history)


@routes("POST", "{api}/commit/{rev}")
def _commit(call: Call) -> Reply:
    repo, base, ref = call.repo, call.commit, call.repo.ref(call.values["rev"])
    create_pr = bool(call.query.get("create_pr"))
    account = call.writer(None if create_pr else repo.namespace)
    operations = [json.loads(line) for line in call.body if line.strip()]
    if not operations or operations[0]["key"] != "header":
        raise Refusal(400, "A commit begins with its header", violation=True)
    header = operations[0]["value"]
    summary, description = header["summary"], header.get("description", "")
    parent = header.get("parentCommit")
    if create_pr:
        base = repo.resolve(parent) if parent else base
    elif parent and not base.sha.startswith(parent):
        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
    files = dict(base.files)
    for operation in operations[1:]:
        apply_operation(call, base, files, operation["key"], operation["value"])
    answer: dict[str, Any] = {"success": True}
    if create_pr:
        branch = ref if ref and ref.startswith("refs/heads/") else "refs/heads/main"
        opened = repo.open_discussion(summary, description, account.user, "open", branch)
        ref = f"refs/pr/{opened.num}"
        repo.refs[ref] = base.sha
        answer["pullRequestUrl"] = f"{call.state.url}/{repo.key}/discussions/{opened.num}"
    commit = repo.add_commit(ref, files, summary, description, account.user)
    url = f"{call.state.url}/{repo.key}/commit/{commit.sha}"
    return json_reply({**answer, "commitOid": commit.sha, "commitUrl": url, "hookOutput": ""})


def apply_operation(call: Call, base: Commit, files: dict[str, File], key: str, value: Any) -> None:
    """Carries out one line of a commit on the tree `files`, which was that of `base`."""
    state, repo, path = call.state, call.repo, value["path"]
    if not all(part not in ("", ".", "..", ".git") for part in path.removesuffix("/").split("/")):
        raise Refusal(400, f"Not a path: {path!r}", violation=True)
    if key == "file":
        content = base64.b64decode(value["content"], validate=True)
        if state.upload_mode(base, path, len(content), content[:512]) == "lfs":
            raise Refusal(400, f"{path} must be uploaded with LFS", violation=True)
        if path == "README.md" and (errors := front_matter(content.decode())[1]):
            raise Refusal(400, f"Invalid metadata in README.md: {'; '.join(errors)}")
        files[path] = state.new_file(repo, *state.content.store(io.BytesIO(content)), lfs=False)
    elif key == "lfsFile":
        sha256 = value["oid"]
        if sha256 not in repo.objects:
            raise Refusal(400, f"{path}: its LFS object {sha256} was never uploaded", violation=True)
        size = state.content[sha256].stat().st_size
        if value.get("size", size) != size:
            raise Refusal(400, f"{path} has {size} bytes, not {value['size']}", violation=True)
        files[path] = state.new_file(repo, sha256, size, lfs=True)
    elif key in ("deletedFile", "deletedFolder"):
        inside = f"{path.removesuffix('/')}/" if key == "deletedFolder" else None
        deleted = [each for each in files if (each.startswith(inside) if inside else each == path)]
        if not deleted:
            message = f"A {key[7:].lower()} with this name doesn't exist: {path}"
            raise Refusal(404, message, "EntryNotFound")
        for each in deleted:
            del files[each]
    else:
        raise Refusal(400, f"Unknown operation in a commit: {key}", violation=True)
