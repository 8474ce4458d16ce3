"""Discussions and pull requests."""

from __future__ import annotations

from typing import Any

from ..messages import Refusal, Reply, json_reply
from ..repository import Discussion, Repo
from ..routing import Call, Routes

routes = Routes()


@routes("GET", "{api}/discussions")
def _discussions(call: Call) -> Reply:
    kind = call.query.get("type", "all")
    found = [each for each in reversed(call.repo.discussions) if kind in ("all", each.kind)]
    discussions = [_summary(call.repo, each) for each in found]
    return json_reply({"discussions": discussions, "count": len(found), "start": 0})


@routes("POST", "{api}/discussions")
def _new_discussion(call: Call) -> Reply:
    account, data, repo = call.writer(None), call.json(), call.repo
    base = "refs/heads/main" if data.get("pullRequest") else ""
    status, description = "draft" if base else "open", data.get("description", "")
    opened = repo.open_discussion(data["title"], description, account.user, status, base)
    if base:
        repo.refs[f"refs/pr/{opened.num}"] = repo.refs[base]
    return json_reply({"num": opened.num, "url": f"{call.state.url}/{repo.key}/discussions/{opened.num}"})


@routes("GET", "{api}/discussions/{name}")
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
