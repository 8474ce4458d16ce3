"""What the answer to a request is given, and how it is found."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any
from urllib.parse import unquote, urlencode

from .account import Account
from .messages import Refusal, Reply, Request, json_reply
from .repository import Commit, Repo, repo_key
from .state import HubState


@dataclass
class Call:
    """A request with what its route needs. `repo` and `commit` are set if the path names them."""

    state: HubState
    request: Request
    query: dict[str, str]
    values: dict[str, str]  # the placeholders of the route, filled in
    body: IO[bytes]
    range: str
    account: Account | None
    repo: Repo = field(init=False)
    commit: Commit = field(init=False)

    def __post_init__(self) -> None:
        key = self.values.get("key")
        if "id" in self.values:
            key = repo_key(self.values["kind"].removesuffix("s"), self.values["id"])
        if key is not None:
            self.repo = self.readable(key)
        if "rev" in self.values:
            self.commit = self.repo.resolve(self.values["rev"])

    def json(self) -> dict[str, Any]:
        try:
            data = json.load(self.body)
        except ValueError as error:
            raise Refusal(400, f"The body is not JSON: {error}", violation=True) from error
        return data if isinstance(data, dict) else {}

    def readable(self, key: str) -> Repo:
        """A repository that the caller may know of."""
        repo = self.state.repos.get(key)
        if repo is None or (repo.private and not (self.account and self.account.belongs_to(repo.namespace))):
            # As on the Hub, a repository that is hidden looks like one that is missing. Without a token, both look
            # like a missing login.
            raise Refusal(404 if self.account else 401, "Repository not found", "RepoNotFound")
        return repo

    def check_gate(self) -> None:
        if self.repo.gated and not (self.account and self.account.belongs_to(self.repo.namespace)):
            message = f"Access to {self.repo.kind} {self.repo.id} is restricted"
            raise Refusal(403 if self.account else 401, message, "GatedRepo")

    def writer(self, namespace: str | None) -> Account:
        """The caller, who must have a token that may write and, if a namespace is given, must belong to it."""
        if self.account is None:
            raise Refusal(401, "Invalid username or password.")
        repo = getattr(self, "repo", None)
        if not self.account.is_permitted(namespace, repo and repo.id):
            raise Refusal(403, "This token may read, but not write")
        if namespace and not self.account.may_write_to(namespace):
            raise Refusal(403, f"You don't have the rights to write under the namespace {namespace}")
        return self.account

    def page(self, items: list[Any]) -> Reply:
        """The page of a list that the query asks for, with a link to the next one."""
        start = int(self.query.get("cursor", 0))
        end = start + self.state.page_size
        headers: dict[str, str] = {}
        if end < len(items):
            query = urlencode({**self.query, "cursor": end})
            headers["Link"] = f'<{self.state.url}{self.request.path}?{query}>; rel="next"'
        return json_reply(items[start:end], headers=headers)

    def stored(self, sha256: str, headers: dict[str, str]) -> Reply:
        """The content of a file, or the range of it that was asked for."""
        path = self.state.content[sha256]
        size = path.stat().st_size
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.range)
        if wanted is None or not any(wanted.groups()):
            return Reply(200, headers, path, 0, size)
        first, last = wanted.groups()
        start = int(first) if first else max(size - int(last), 0)
        end = min(int(last) + 1, size) if first and last else size
        if start >= end:
            return Reply(416, {"Content-Range": f"bytes */{size}"})
        headers |= {"Content-Range": f"bytes {start}-{end - 1}/{size}"}
        return Reply(206, headers, path, start, end - start)


Answer = Callable[[Call], Reply]
_ID = r"[\w.-]+(?:/[\w.-]+)?"
_PLACEHOLDERS = {
    "{api}": rf"/api/(?P<kind>models|datasets|spaces)/(?P<id>{_ID})",
    "{key}": rf"(?P<key>(?:datasets/|spaces/)?{_ID})",
    "{rev}": r"(?P<rev>refs/(?:pr|convert)/[^/]+|[^/]+)",
    "{path}": r"(?P<path>.+)",
    "{name}": r"(?P<name>[^/]+)",
    "{object}": r"(?P<secret>[^/]+)/(?P<sha256>[0-9a-f]{64})",
}


class Routes:
    """Functions that answer requests, by method and path. An instance decorates them."""

    def __init__(self) -> None:
        self._answers: list[tuple[str, re.Pattern[str], Answer]] = []

    def __call__(self, method: str, template: str) -> Callable[[Answer], Answer]:
        for placeholder, pattern in _PLACEHOLDERS.items():
            template = template.replace(placeholder, pattern)

        def register(answer: Answer) -> Answer:
            self._answers.append((method, re.compile(template, re.ASCII), answer))
            return answer

        return register

    def find(self, request: Request) -> tuple[Answer, dict[str, str]] | None:
        """The function for a request, and what its path has in place of the placeholders."""
        for method, pattern, answer in self._answers:
            found = pattern.fullmatch(request.path)
            if found and method == request.method.replace("HEAD", "GET"):
                return answer, {name: unquote(value) for name, value in found.groupdict().items() if value}
        return None
