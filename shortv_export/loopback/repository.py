"""Accounts, and repositories with their references, commits and discussions."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from .content import lfs_pointer
from .messages import Refusal


@dataclass(frozen=True)
class Account:
    """A user, with the rights of one of their tokens."""

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
        """Whether the token may write to a namespace or, if that is None, anywhere."""
        if self.role != "fineGrained":
            return self.role == "write"
        if namespace is None:
            return any(name.endswith(".write") for names in self.permissions.values() for name in names)
        granted = {*self.permissions.get(namespace, ())}
        if repo_id is None:
            return "repo.write" in granted
        return not (granted | {*self.permissions.get(repo_id, ())}).isdisjoint({"repo.write", "repo.content.write"})

    def fine_grained(self) -> dict[str, Any]:
        """The permissions in the form of ``whoami-v2``'s ``auth.accessToken.fineGrained``."""
        scoped = []
        for name in filter(None, self.permissions):
            kind = "model" if "/" in name else "user" if name == self.user else "org"
            entity = {"_id": hashlib.sha256(name.encode()).hexdigest()[:24], "type": kind, "name": name}
            scoped.append({"entity": entity, "permissions": list(self.permissions[name])})
        return {"canReadGatedRepos": False, "global": list(self.permissions.get("", ())), "scoped": scoped}


@dataclass(frozen=True)
class File:
    """One file of a commit."""

    sha256: str
    size: int
    oid: str  # git's blob id of the content or, for an LFS file, of its pointer
    lfs: bool

    @property
    def pointer_size(self) -> int:
        return len(lfs_pointer(self.sha256, self.size))


@dataclass(frozen=True)
class Commit:
    """One commit, with all files of the repository at that commit."""

    sha: str
    parent: str | None
    message: str
    description: str
    author: str
    date: str
    files: Mapping[str, File]  # by path


@dataclass
class Discussion:
    """A discussion or a pull request."""

    num: int
    title: str
    description: str
    author: str
    status: str
    base: str  # the branch that a pull request goes to; empty for a plain discussion
    date: str

    @property
    def kind(self) -> str:
        return "pull_request" if self.base else "discussion"


@dataclass
class Repo:
    """One repository."""

    key: str  # `owner/name`; a dataset or Space has `datasets/` or `spaces/` in front
    private: bool
    gated: bool | str
    created: str
    refs: dict[str, str] = field(default_factory=dict)  # full ref name -> commit sha
    commits: dict[str, Commit] = field(default_factory=dict)
    objects: set[str] = field(default_factory=set)  # sha256 of the LFS objects that commits here may use
    discussions: list[Discussion] = field(default_factory=list)

    @property
    def id(self) -> str:
        return "/".join(self.key.split("/")[-2:])

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0]

    @property
    def kind(self) -> str:
        prefix, _, rest = self.key.partition("/")
        return prefix.removesuffix("s") if "/" in rest else "model"

    def ref(self, revision: str) -> str | None:
        """The full name of a branch, tag or other reference."""
        names = (revision, f"refs/heads/{revision}", f"refs/tags/{revision}")
        return next((name for name in names if name in self.refs), None)

    def resolve(self, revision: str) -> Commit:
        """The commit of a reference, or of the first seven or more digits of a commit id.

        Raises:
            Refusal: there is none.
        """
        if ref := self.ref(revision):
            return self.commits[self.refs[ref]]
        if re.fullmatch(r"[0-9a-f]{7,40}", revision):
            found = [sha for sha in self.commits if sha.startswith(revision)]
            if len(found) == 1:
                return self.commits[found[0]]
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def history(self, commit: Commit) -> Iterator[Commit]:
        """A commit and its ancestors, newest first."""
        yield commit
        while commit.parent:
            commit = self.commits[commit.parent]
            yield commit

    def add_commit(
        self, ref: str | None, files: dict[str, File], message: str, description: str = "", author: str = ""
    ) -> Commit:
        """Adds a commit to a branch or pull request.

        Raises:
            Refusal: `ref` is neither.
        """
        if ref is None or ref.startswith("refs/tags/"):
            raise Refusal(400, "Only a branch or a pull request can be committed to")
        parent, date = self.refs.get(ref), now()
        tree = sorted((path, file.oid) for path, file in files.items())
        # Any unique id will do: clients cannot compute git's own.
        identity = json.dumps([self.key, len(self.commits), parent, message, description, author, date, tree])
        sha = hashlib.sha1(identity.encode()).hexdigest()
        self.commits[sha] = Commit(sha, parent, message, description, author, date, files)
        self.refs[ref] = sha
        return self.commits[sha]

    def open_discussion(self, title: str, description: str, author: str, status: str, base: str) -> Discussion:
        num = len(self.discussions) + 1
        self.discussions.append(Discussion(num, title, description, author, status, base, now()))
        return self.discussions[-1]


def repo_key(kind: str, repo_id: str) -> str:
    """See `Repo.key`."""
    return repo_id if kind == "model" else f"{kind}s/{repo_id}"


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
