"""What a token may do on the Hub, as far as the Hub tells before anything is tried.

A fine-grained token's permissions come with ``GET /api/whoami-v2``, under ``auth.accessToken``::

    {"role": "fineGrained", "fineGrained": {"canReadGatedRepos": false, "global": ["discussion.write"], "scoped": [
        {"entity": {"_id": "...", "type": "org", "name": "acme"}, "permissions": ["repo.content.read", "repo.write"]},
        ...]}}

``repo.write`` on a user or an organisation is needed to make a repository there; ``repo.content.write`` is enough
for one that exists; ``discussion.write`` opens pull requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ShortVError

_TOKENS = "https://huggingface.co/settings/tokens"


def check_role(account: Mapping[str, Any]) -> None:
    """Refuses a token that only reads.

    Args:
        account: what `HfApi.whoami` gives.

    Raises:
        ShortVError: it does.
    """
    if _access_token(account).get("role") == "read":
        raise ShortVError(f"the token may only read; make one that may write at {_TOKENS}.")


def check_permissions(account: Mapping[str, Any], repo_id: str, *, exists: bool, create_pr: bool) -> None:
    """Refuses a fine-grained token that lacks the permission for a push. Other tokens have no such list.

    Args:
        account: what `HfApi.whoami` gives.
        repo_id: with its namespace.
        exists: the repository is there already.
        create_pr: a pull request will do.

    Raises:
        ShortVError: it lacks the permission, which is named.
    """
    token, namespace = _access_token(account), repo_id.split("/")[0]
    scopes = token.get("fineGrained")
    if token.get("role") != "fineGrained" or not isinstance(scopes, dict):
        return
    granted = set(scopes.get("global") or ())
    for scope in scopes.get("scoped") or ():
        kind, name = scope["entity"].get("type"), scope["entity"].get("name")
        # One without a name, or a group of repositories, may be this one: the Hub will tell when it is written to.
        if (
            (kind in ("user", "org") and name in (namespace, None))
            or (kind == "model" and exists and name in (repo_id, None))
            or kind == "resource-group"
        ):
            granted.update(scope["permissions"])
    needed: tuple[str, ...]
    if create_pr:
        act, needed = "open a pull request in", ("discussion.write", "repo.write", "repo.content.write")
    elif exists:
        act, needed = "write to", ("repo.write", "repo.content.write")
    else:
        act, needed = "create", ("repo.write",)
    if granted.isdisjoint(needed):
        place = namespace if not exists else f"{namespace} or {repo_id}"
        raise ShortVError(
            f"the fine-grained token may not {act} {repo_id}: it lacks the permission {needed[0]} on {place}; "
            f"add it at {_TOKENS}."
        )


def _access_token(account: Mapping[str, Any]) -> dict[str, Any]:
    return account.get("auth", {}).get("accessToken", {})
