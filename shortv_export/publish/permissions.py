"""Checks what a token may do on the Hub, before anything is sent.

A fine-grained token's permissions come with ``GET /api/whoami-v2``, under ``auth.accessToken``::

    {"role": "fineGrained", "fineGrained": {"canReadGatedRepos": false, "global": ["discussion.write"], "scoped": [
        {"entity": {"_id": "...", "type": "org", "name": "acme"}, "permissions": ["repo.content.read", "repo.write"]},
        ...]}}

To create a repository takes ``repo.write`` on its user or organisation; to write to an existing one,
``repo.content.write`` is enough; to open a pull request, ``discussion.write``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ShortVError

TOKENS = "https://huggingface.co/settings/tokens"


def check_role(account: Mapping[str, Any]) -> None:
    """Raises a ShortVError if the token may only read. `account` is the answer of `HfApi.whoami`."""
    if _access_token(account).get("role") == "read":
        raise ShortVError(f"the token may only read; make one that may write at {TOKENS}.")


def check_permissions(account: Mapping[str, Any], repo_id: str, *, exists: bool, create_pr: bool) -> None:
    """Refuses a fine-grained token without the permission for a push. Other tokens have no list of permissions.

    Args:
        account: the answer of `HfApi.whoami`.
        repo_id: with its namespace.
        exists: whether the repository exists.
        create_pr: whether the push opens a pull request.

    Raises:
        ShortVError: the permission is missing.
    """
    token, namespace = _access_token(account), repo_id.split("/")[0]
    scopes = token.get("fineGrained")
    if token.get("role") != "fineGrained" or not isinstance(scopes, dict):
        return
    granted = set(scopes.get("global") or ())
    for scope in scopes.get("scoped") or ():
        kind, name = scope["entity"].get("type"), scope["entity"].get("name")
        # A scope without a name, or a group of repositories, may include this one; the Hub decides when we write.
        if (
            (kind in ("user", "org") and name in (namespace, None))
            or (kind == "model" and exists and name in (repo_id, None))
            or kind == "resource-group"
        ):
            granted.update(scope["permissions"])
    if create_pr:
        act, needed = "open a pull request in", ["discussion.write", "repo.write", "repo.content.write"]
    elif exists:
        act, needed = "write to", ["repo.write", "repo.content.write"]
    else:
        act, needed = "create", ["repo.write"]
    if granted.isdisjoint(needed):
        place = namespace if not exists else f"{namespace} or {repo_id}"
        raise ShortVError(
            f"the fine-grained token may not {act} {repo_id}: it lacks the permission {needed[0]} on {place}; "
            f"add it at {TOKENS}."
        )


def _access_token(account: Mapping[str, Any]) -> dict[str, Any]:
    return account.get("auth", {}).get("accessToken", {})
