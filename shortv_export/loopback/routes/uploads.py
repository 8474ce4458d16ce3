"""What clients send before a commit: checks of the card, uploads of large files, copies between repositories."""

from __future__ import annotations

import base64
from typing import Any

from ..card_metadata import front_matter
from ..content import xet_hash
from ..messages import Refusal, Reply, json_reply
from ..repository import repo_key
from ..routing import Call, Routes

routes = Routes()


@routes("POST", "/api/validate-yaml")
def _validate_yaml(call: Call) -> Reply:
    _, *found = front_matter(call.json().get("content", ""))
    errors, warnings = ([{"message": message} for message in messages] for messages in found)
    return json_reply({"errors": errors, "warnings": warnings}, 400 if errors else 200)


@routes("POST", "{api}/preupload/{rev}")
def _preupload(call: Call) -> Reply:
    call.writer(None if call.query.get("create_pr") else call.repo.namespace)
    answers = []
    for entry in call.json()["files"]:
        sample = base64.b64decode(entry["sample"])
        mode = call.state.upload_mode(call.commit, entry["path"], entry["size"], sample)
        present = call.commit.files.get(entry["path"])
        oid = (present.sha256 if present.lfs else present.oid) if present else None
        answers.append({"path": entry["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return json_reply({"files": answers, "commitOid": call.commit.sha})


@routes("POST", "/{key}\\.git/info/lfs/objects/batch")
def _lfs_batch(call: Call) -> Reply:
    data = call.json()
    # An upload without a ref is for a pull request, which anybody may open.
    call.writer(call.repo.namespace if "ref" in data else None)
    if data.get("operation") != "upload" or data.get("hash_algo", "sha256") != "sha256":
        raise Refusal(400, "Only uploads by sha256 are answered", violation=True)
    objects = []
    for entry in data["objects"]:
        answer: dict[str, Any] = {"oid": entry["oid"], "size": entry["size"]}
        if entry["oid"] not in call.repo.objects:
            upload = {"href": f"{call.state.storage_url}/{entry['oid']}"}
            verify = {"href": f"{call.state.url}/{call.repo.key}.git/info/lfs/objects/verify"}
            answer["actions"] = {"upload": upload, "verify": verify}
        objects.append(answer)
    return json_reply({"transfer": "basic", "objects": objects})


@routes("POST", "/{key}\\.git/info/lfs/objects/verify")
def _lfs_verify(call: Call) -> Reply:
    call.writer(None)
    data, state = call.json(), call.state
    if data["oid"] not in state.uploads or state.content[data["oid"]].stat().st_size != data["size"]:
        raise Refusal(404, f"Object {data['oid']} was not uploaded", violation=True)
    call.repo.objects.add(data["oid"])
    return json_reply({"success": True})


@routes("POST", "{api}/lfs-files/duplicate")
def _lfs_duplicate(call: Call) -> Reply:
    """Gives another repository large files of this one. A copy between repositories needs no upload but this."""
    call.check_gate()
    call.writer(None)
    data = call.json()
    target = call.readable(repo_key(data["target"]["type"], data["target"]["name"]))
    done: list[dict[str, str]] = []
    failed: list[dict[str, str]] = []
    for entry in data["files"]:
        sha256 = entry["sha256"]
        if sha256 in call.repo.objects and entry["xetHash"] == xet_hash(sha256):
            target.objects.add(sha256)
            done.append({"sha256": sha256})
        else:
            failed.append({"sha256": sha256, "error": "No such object in the source repository"})
    return json_reply({"success": done, "failed": failed})


@routes("GET", "{api}/xet-(?:read|write)-token/{rev}")
def _xet_token(call: Call) -> Reply:
    raise Refusal(404, "Xet storage is not offered here: set HF_HUB_DISABLE_XET=1", violation=True)
