"""Who calls, and what their token may do."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Account:
    """A user, as one token shows them."""

    user: str
    role: str  # of the token: read, write or fineGrained
    orgs: tuple[str, ...]
    org_role: str
    permissions: Mapping[str, Sequence[str]]

    def belongs_to(self, namespace: str) -> bool:
        return namespace in (self.user, *self.orgs)

    def may_write_to(self, namespace: str) -> bool:
        return namespace == self.user or (namespace in self.orgs and self.org_role != "read")

    def is_permitted(self, namespace: str | None, repo_id: str | None) -> bool:
        """Whether the token may write to a namespace; without one, whether it may write anywhere."""
        if self.role != "fineGrained":
            return self.role == "write"
        if namespace is None:
            return any(name.endswith(".write") for names in self.permissions.values() for name in names)
        granted = {*self.permissions.get(namespace, ())}
        if repo_id is None:
            return "repo.write" in granted
        return not (granted | {*self.permissions.get(repo_id, ())}).isdisjoint({"repo.write", "repo.content.write"})

    def fine_grained(self) -> dict[str, Any]:
        """The permissions as the Hub shows them: ``whoami-v2``'s ``auth.accessToken.fineGrained``."""
        scoped = []
        for name, names in self.permissions.items():
            kind = "model" if "/" in name else "user" if name == self.user else "org"
            identity = hashlib.sha256(name.encode()).hexdigest()[:24]
            if name:
                entity = {"_id": identity, "type": kind, "name": name}
                scoped.append({"entity": entity, "permissions": list(names)})
        return {"canReadGatedRepos": False, "global": list(self.permissions.get("", ())), "scoped": scoped}
