"""Branches, tags, discussions and pull requests."""

from __future__ import annotations

from typing import Any

from ..messages import Refusal, Reply, json_reply
from ..repository import Commit, Discussion, Repo
from ..routing import Call, route


@route("GET", "{api}/refs")
def _refs(call: Call) -> Reply:
    answer: dict[str, list[dict[str, str]]] = {"branches": [], "converts": [], "tags": []}
    groups = {"heads": "branches", "tags": "tags", "convert": "converts"}
    if call.query.get("include_prs"):
        answer["pullRequests"] = []
        groups["pr"] = "pullRequests"
    for ref, sha in call.repo.refs.items():
        _, group, name = ref.split("/", 2)
        if group in groups:
            answer[groups[group]].append({"name": name, "ref": ref, "targetCommit": sha})
    return json_reply(answer)


@route("POST", "{api}/tag/{rev}")
def _tag(call: Call) -> Reply:
    return _new_ref(call, f"refs/tags/{call.json()['tag']}", call.commit)


@route("POST", "{api}/branch/{name}")
def _branch(call: Call) -> Reply:
    start = call.repo.resolve(call.json().get("startingPoint") or "main")
    return _new_ref(call, f"refs/heads/{call.values['name']}", start)


def _new_ref(call: Call, ref: str, target: Commit) -> Reply:
    call.writer(call.repo.namespace)
    if ref in call.repo.refs:
        raise Refusal(409, f"Reference already exists: {ref}")
    call.repo.refs[ref] = target.sha
    return json_reply({})


@route("DELETE", "{api}/(?P<group>tag|branch)/{name}")
def _delete_ref(call: Call) -> Reply:
    call.writer(call.repo.namespace)
    ref = f"refs/{'tags' if call.values['group'] == 'tag' else 'heads'}/{call.values['name']}"
    if ref == "refs/heads/main":
        raise Refusal(403, "The main branch cannot be deleted")
    if call.repo.refs.pop(ref, None) is None:
        raise Refusal(404, f"Invalid rev id: {call.values['name']}", "RevisionNotFound")
    return json_reply({})


@route("GET", "{api}/discussions")
def _discussions(call: Call) -> Reply:
    kind = call.query.get("type", "all")
    found = [each for each in reversed(call.repo.discussions) if kind in ("all", each.kind)]
    discussions = [_summary(call.repo, each) for each in found]
    return json_reply({"discussions": discussions, "count": len(found), "start": 0})


@route("POST", "{api}/discussions")
def _new_discussion(call: Call) -> Reply:
    account, data, repo = call.writer(None), call.json(), call.repo
    base = "refs/heads/main" if data.get("pullRequest") else ""
    status, description = "draft" if base else "open", data.get("description", "")
    opened = repo.open_discussion(data["title"], description, account.user, status, base)
    if base:
        repo.refs[f"refs/pr/{opened.num}"] = repo.refs[base]
    return json_reply({"num": opened.num, "url": f"{call.hub.url}/{repo.key}/discussions/{opened.num}"})


@route("GET", "{api}/discussions/{name}")
def _details(call: Call) -> Reply:
    repo, num = call.repo, call.values["name"]
    found = next((each for each in repo.discussions if str(each.num) == num), None)
    if found is None:
        raise Refusal(404, f"No discussion {num}")
    latest = {"raw": found.description, "updatedAt": found.date}
    comment = {"edited": False, "hidden": False, "latest": latest}
    events = [{"id": f"{num}-0", "type": "comment", "createdAt": found.date, "data": comment}]
    answer = _summary(repo, found)
    if found.base:
        before = {commit.sha for commit in repo.history(repo.resolve(found.base))}
        for commit in reversed(list(repo.history(repo.resolve(f"refs/pr/{num}")))):
            if commit.sha not in before:
                data = {"subject": commit.message, "oid": commit.sha}
                events.append({"id": commit.sha, "type": "commit", "createdAt": commit.date, "data": data})
        answer |= {"changes": {"base": found.base}, "filesWithConflicts": [], "diff": ""}
    author = {"author": {"name": found.author}}
    return json_reply({**answer, "events": [event | author for event in events]})


def _summary(repo: Repo, discussion: Discussion) -> dict[str, Any]:
    return {
        "num": discussion.num,
        "title": discussion.title,
        "status": discussion.status,
        "isPullRequest": bool(discussion.base),
        "author": {"name": discussion.author},
        "createdAt": discussion.date,
        "repo": {"name": repo.id, "type": repo.kind},
    }
