"""Uploading files, committing them, also as pull requests, and listing commits."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

from ..card_metadata import front_matter
from ..content import xet_hash
from ..ignored import is_ignored
from ..messages import Refusal, Reply, json_reply
from ..repository import Commit, File, repo_key
from ..routing import Call, route


@route("POST", "/api/validate-yaml")
def _validate_yaml(call: Call) -> Reply:
    _, *found = front_matter(call.json().get("content", ""))
    errors, warnings = ([{"message": message} for message in messages] for messages in found)
    return json_reply({"errors": errors, "warnings": warnings}, 400 if errors else 200)


@route("POST", "{api}/preupload/{rev}")
def _preupload(call: Call) -> Reply:
    call.writer(None if call.query.get("create_pr") else call.repo.namespace)
    answers, data = [], call.json()
    ignored = data.get("gitIgnore")
    if ignored is None and (file := call.commit.files.get(".gitignore")):
        ignored = call.hub.content[file.sha256].read_text("utf-8")
    for entry in data["files"]:
        sample = base64.b64decode(entry["sample"])
        mode = call.hub.upload_mode(call.commit, entry["path"], entry["size"], sample)
        present = call.commit.files.get(entry["path"])
        oid = (present.sha256 if present.lfs else present.oid) if present else None
        should_ignore = is_ignored(entry["path"], ignored or "")
        answers.append({"path": entry["path"], "uploadMode": mode, "shouldIgnore": should_ignore, "oid": oid})
    return json_reply({"files": answers, "commitOid": call.commit.sha})


@route("POST", "/{key}\\.git/info/lfs/objects/batch")
def _lfs_batch(call: Call) -> Reply:
    data = call.json()
    # An upload without a ref is for a pull request, which every user may open.
    call.writer(call.repo.namespace if "ref" in data else None)
    if data.get("operation") != "upload" or data.get("hash_algo", "sha256") != "sha256":
        raise Refusal(400, "Only uploads by sha256 are supported", violation=True)
    objects = []
    for entry in data["objects"]:
        answer: dict[str, Any] = {"oid": entry["oid"], "size": entry["size"]}
        if entry["oid"] not in call.repo.objects:
            upload = {"href": f"{call.hub.storage_url}/{entry['oid']}"}
            verify = {"href": f"{call.hub.url}/{call.repo.key}.git/info/lfs/objects/verify"}
            answer["actions"] = {"upload": upload, "verify": verify}
        objects.append(answer)
    return json_reply({"transfer": "basic", "objects": objects})


@route("POST", "/{key}\\.git/info/lfs/objects/verify")
def _lfs_verify(call: Call) -> Reply:
    call.writer(None)
    data, hub = call.json(), call.hub
    if data["oid"] not in hub.uploads or hub.content[data["oid"]].stat().st_size != data["size"]:
        raise Refusal(404, f"Object {data['oid']} was not uploaded", violation=True)
    call.repo.objects.add(data["oid"])
    return json_reply({"success": True})


@route("POST", "{api}/lfs-files/duplicate")
def _lfs_duplicate(call: Call) -> Reply:
    """Copies large files to another repository, without an upload."""
    call.check_gate()
    call.writer(None)
    data = call.json()
    target = call.readable(repo_key(data["target"]["type"], data["target"]["name"]))
    done, failed = [], []
    for entry in data["files"]:
        sha256 = entry["sha256"]
        if sha256 in call.repo.objects and entry["xetHash"] == xet_hash(sha256):
            target.objects.add(sha256)
            done.append({"sha256": sha256})
        else:
            failed.append({"sha256": sha256, "error": "No such object in the source repository"})
    return json_reply({"success": done, "failed": failed})


@route("GET", "{api}/xet-(?:read|write)-token/{rev}")
def _xet_token(call: Call) -> Reply:
    raise Refusal(404, "There is no Xet storage here; set HF_HUB_DISABLE_XET=1", violation=True)


@route("GET", "{api}/commits/{rev}")
def _commits(call: Call) -> Reply:
    history = []
    for each in call.repo.history(call.commit):
        authors = [{"user": each.author}]
        texts = {"title": each.message, "message": each.description, "date": each.date}
        history.append({"id": each.sha, **texts, "authors": authors})
    return call.page(history)


@route("POST", "{api}/commit/{rev}")
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
        answer["pullRequestUrl"] = f"{call.hub.url}/{repo.key}/discussions/{opened.num}"
    commit = repo.add_commit(ref, files, summary, description, account.user)
    url = f"{call.hub.url}/{repo.key}/commit/{commit.sha}"
    return json_reply({**answer, "commitOid": commit.sha, "commitUrl": url, "hookOutput": ""})


def apply_operation(call: Call, base: Commit, files: dict[str, File], key: str, value: Any) -> None:
    """Applies one line of a commit to `files`, which begins as a copy of the files of `base`."""
    hub, repo, path = call.hub, call.repo, value["path"]
    if not all(part not in ("", ".", "..", ".git") for part in path.removesuffix("/").split("/")):
        raise Refusal(400, f"Not a path: {path!r}", violation=True)
    if key == "file":
        content = base64.b64decode(value["content"], validate=True)
        if hub.upload_mode(base, path, len(content), content[:512]) == "lfs":
            raise Refusal(400, f"{path} must be uploaded with LFS", violation=True)
        if path == "README.md" and (errors := front_matter(content.decode())[1]):
            raise Refusal(400, f"Invalid metadata in README.md: {'; '.join(errors)}")
        files[path] = hub.new_file(repo, *hub.content.store(io.BytesIO(content)), lfs=False)
    elif key == "lfsFile":
        sha256 = value["oid"]
        if sha256 not in repo.objects:
            raise Refusal(400, f"{path}: its LFS object {sha256} was never uploaded", violation=True)
        size = hub.content[sha256].stat().st_size
        if value.get("size", size) != size:
            raise Refusal(400, f"{path} has {size} bytes, not {value['size']}", violation=True)
        files[path] = hub.new_file(repo, sha256, size, lfs=True)
    elif key in ("deletedFile", "deletedFolder"):
        inside = f"{path.removesuffix('/')}/" if key == "deletedFolder" else None
        deleted = [each for each in files if (each.startswith(inside) if inside else each == path)]
        if not deleted:
            raise Refusal(404, f"A {key[7:].lower()} with this name doesn't exist: {path}", "EntryNotFound")
        for each in deleted:
            del files[each]
    else:
        raise Refusal(400, f"Unknown operation in a commit: {key}", violation=True)
