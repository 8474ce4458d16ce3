"""Branches and tags."""

from __future__ import annotations

from ..messages import Refusal, Reply, json_reply
from ..repository import Commit
from ..routing import Call, Routes

routes = Routes()


@routes("GET", "{api}/refs")
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


@routes("POST", "{api}/tag/{rev}")
def _tag(call: Call) -> Reply:
    return _new_ref(call, f"refs/tags/{call.json()['tag']}", call.commit)


@routes("POST", "{api}/branch/{name}")
def _branch(call: Call) -> Reply:
    start = call.repo.resolve(call.json().get("startingPoint") or "main")
    return _new_ref(call, f"refs/heads/{call.values['name']}", start)


def _new_ref(call: Call, ref: str, target: Commit) -> Reply:
    call.writer(call.repo.namespace)
    if ref in call.repo.refs:
        raise Refusal(409, f"Reference already exists: {ref}")
    call.repo.refs[ref] = target.sha
    return json_reply({})


@routes("DELETE", "{api}/(?P<group>tag|branch)/{name}")
def _delete_ref(call: Call) -> Reply:
    call.writer(call.repo.namespace)
    ref = f"refs/{'tags' if call.values['group'] == 'tag' else 'heads'}/{call.values['name']}"
    if ref == "refs/heads/main":
        raise Refusal(403, "The main branch cannot be deleted")
    if call.repo.refs.pop(ref, None) is None:
        raise Refusal(404, f"Invalid rev id: {call.values['name']}", "RevisionNotFound")
    return json_reply({})
