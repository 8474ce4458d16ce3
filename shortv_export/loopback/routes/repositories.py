"""The caller's account; creating, changing and describing repositories."""

from __future__ import annotations

from typing import Any

from ..card_metadata import front_matter
from ..messages import Refusal, Reply, json_reply
from ..repository import repo_key
from ..routing import Call, route


@route("GET", "/api/whoami-v2")
def _whoami(call: Call) -> Reply:
    if call.account is None:
        raise Refusal(401, "Invalid username or password.")
    user = call.account.user
    orgs = [{"type": "org", "name": org, "roleInOrg": call.account.org_role} for org in call.account.orgs]
    token: dict[str, Any] = {"displayName": "loopback", "role": call.account.role}
    if call.account.role == "fineGrained":
        token["fineGrained"] = call.account.fine_grained()
    auth = {"type": "access_token", "accessToken": token}
    return json_reply({"type": "user", "id": user, "name": user, "fullname": user, "orgs": orgs, "auth": auth})


@route("GET", "/api/agent-harnesses")
def _harnesses(call: Call) -> Reply:
    """An empty list. Clients ask for it once a day, to name the program that calls them in the user agent."""
    return json_reply({"standardEnvVars": [], "harnesses": {}})


@route("POST", "/api/repos/create")
def _create(call: Call) -> Reply:
    data, account = call.json(), call.writer(None)
    key = _named(call, data)
    if data.get("type") == "space" and data.get("sdk") not in ("gradio", "docker", "static"):
        raise Refusal(400, "A Space needs an sdk", violation=True)
    call.writer(key.split("/")[-2])
    url = f"{call.hub.url}/{key}"
    if call.hub.current_key(key) in call.hub.repos:
        raise Refusal(409, "You already created this repo", url=url)
    private = data.get("visibility") == "private" or bool(data.get("private"))
    repo = call.hub.new_repo(key, private, False, account.user)
    return json_reply({"url": url, "name": repo.id, "id": repo.id})


@route("DELETE", "/api/repos/delete")
def _delete(call: Call) -> Reply:
    repo = call.readable(_named(call, call.json()))
    call.writer(repo.namespace)
    del call.hub.repos[repo.key]
    return json_reply({})


@route("POST", "/api/repos/move")
def _move(call: Call) -> Reply:
    data = call.json()
    old, new = (repo_key(data.get("type") or "model", data[name]) for name in ("fromRepo", "toRepo"))
    repo = call.readable(old)
    call.writer(repo.namespace)
    call.writer(new.split("/")[-2])
    if call.hub.current_key(new) in call.hub.repos:
        raise Refusal(409, "A repository with this name exists")
    call.hub.rename(old, new)
    return json_reply({})


def _named(call: Call, data: dict[str, Any]) -> str:
    """The key of the repository named in the body of a request."""
    namespace = data.get("organization") or (call.account.user if call.account else "")
    return repo_key(data.get("type") or "model", f"{namespace}/{data['name']}")


@route("PUT", "{api}/settings")
def _settings(call: Call) -> Reply:
    call.writer(call.repo.namespace)
    data = call.json()
    if "visibility" in data or "private" in data:
        call.repo.private = data.get("visibility") == "private" or bool(data.get("private"))
    call.repo.gated = data.get("gated", call.repo.gated)
    return json_reply({"private": call.repo.private, "gated": call.repo.gated})


@route("GET", "{api}/auth-check(?P<write>/write)?")
def _auth_check(call: Call) -> Reply:
    call.check_gate()
    if "write" in call.values:
        call.writer(call.repo.namespace)
    return json_reply({})


@route("GET", "{api}(?:/revision/{rev})?")
def _info(call: Call) -> Reply:
    repo = call.repo
    commit = call.commit if "rev" in call.values else repo.resolve("main")
    siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(commit.files)]
    for sibling in siblings if call.query.get("blobs") else ():
        file = commit.files[sibling["rfilename"]]
        sibling |= {"blobId": file.oid, "size": file.size}
        if file.lfs:
            sibling["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
    card: dict[str, Any] = {}
    if readme := commit.files.get("README.md"):
        card = front_matter(call.hub.content[readme.sha256].read_text("utf-8", "replace"))[0]
    info: dict[str, Any] = {"id": repo.id, "modelId": repo.id, "sha": commit.sha}
    info |= {"private": repo.private, "gated": repo.gated, "disabled": False, "siblings": siblings}
    info |= {"createdAt": repo.created, "lastModified": commit.date, "downloads": 0, "likes": 0}
    info |= {"author": repo.namespace, "cardData": card, "tags": card.get("tags") or []}
    return json_reply(info | {key: card[key] for key in ("library_name", "pipeline_tag") if key in card})
