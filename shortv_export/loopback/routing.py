"""Finding the answer to a request. The functions in `routes` answer; each gets a `Call`."""

from __future__ import annotations

import contextlib
import json
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlencode

from .messages import Refusal, Reply, Request, json_reply
from .repository import Account, Commit, Repo, repo_key

if TYPE_CHECKING:
    from .hub import LoopbackHub


@dataclass
class Call:
    """A request and what is needed to answer it. `repo` and `commit` are set if the path names them."""

    hub: LoopbackHub
    request: Request
    query: dict[str, str]
    values: dict[str, str]  # of the placeholders in the route's path
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
            self._redirect(key)
            self.repo = self.readable(key)
        if "rev" in self.values:
            self.commit = self.repo.resolve(self.values["rev"])

    def _redirect(self, key: str) -> None:
        """As on the Hub, old names lead to the new one, and upper and lower case are the same."""
        if (now := self.hub.current_key(key)) != key:
            old, new = ("/".join(each.split("/")[-2:]) for each in (key, now))
            query = f"?{self.request.query}" if self.request.query else ""
            moved = Refusal(307, f"Moved to {new}")
            moved.reply.headers["Location"] = self.request.path.replace(old, new, 1) + query
            raise moved

    def json(self) -> dict[str, Any]:
        try:
            data = json.load(self.body)
        except ValueError as error:
            raise Refusal(400, f"The body is not JSON: {error}", violation=True) from error
        return data if isinstance(data, dict) else {}

    def readable(self, key: str) -> Repo:
        """A repository that the caller may see."""
        repo = self.hub.repos.get(key)
        if repo is None or (repo.private and not (self.account and self.account.belongs_to(repo.namespace))):
            # As on the Hub, hidden and missing repositories look alike, and without a token both ask for a login.
            raise Refusal(404 if self.account else 401, "Repository not found", "RepoNotFound")
        return repo

    def check_gate(self) -> None:
        if self.repo.gated and not (self.account and self.account.belongs_to(self.repo.namespace)):
            message = f"Access to {self.repo.kind} {self.repo.id} is restricted"
            raise Refusal(403 if self.account else 401, message, "GatedRepo")

    def writer(self, namespace: str | None) -> Account:
        """The caller, who must be allowed to write to a namespace or, if that is None, anywhere."""
        if self.account is None:
            raise Refusal(401, "Invalid username or password.")
        repo = getattr(self, "repo", None)
        if not self.account.is_permitted(namespace, repo and repo.id):
            raise Refusal(403, "This token may read, but not write")
        if namespace and not self.account.may_write_to(namespace):
            raise Refusal(403, f"You don't have the rights to write under the namespace {namespace}")
        return self.account

    def page(self, items: list[Any]) -> Reply:
        """The requested page of a list, with a link to the next one."""
        start = int(self.query.get("cursor", 0))
        end = start + self.hub.page_size
        headers: dict[str, str] = {}
        if end < len(items):
            query = urlencode({**self.query, "cursor": end})
            headers["Link"] = f'<{self.hub.url}{self.request.path}?{query}>; rel="next"'
        return json_reply(items[start:end], headers=headers)

    def stored(self, sha256: str, headers: dict[str, str]) -> Reply:
        """The content of a file, or the requested range of it."""
        path = self.hub.content[sha256]
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
Routes = list[tuple[str, re.Pattern[str], Answer]]
HUB: Routes = []
STORAGE: Routes = []
_ID = r"[\w.-]+(?:/[\w.-]+)?"
_PLACEHOLDERS = {
    "{api}": rf"/api/(?P<kind>models|datasets|spaces)/(?P<id>{_ID})",
    "{key}": rf"(?P<key>(?:datasets/|spaces/)?{_ID})",
    "{rev}": r"(?P<rev>refs/(?:pr|convert)/[^/]+|[^/]+)",
    "{path}": r"(?P<path>.+)",
    "{name}": r"(?P<name>[^/]+)",
    "{object}": r"(?P<secret>[^/]+)/(?P<sha256>[0-9a-f]{64})",
}


def route(method: str, template: str, routes: Routes = HUB) -> Callable[[Answer], Answer]:
    """A decorator: the function answers requests with this method and path."""
    for placeholder, pattern in _PLACEHOLDERS.items():
        template = template.replace(placeholder, pattern)

    def register(answer: Answer) -> Answer:
        routes.append((method, re.compile(template, re.ASCII), answer))
        return answer

    return register


def answer_request(hub: LoopbackHub, request: Request, headers: Message, body: IO[bytes], on_storage: bool) -> Reply:
    """Answers a request. Violations of the protocol and defects of this Hub are added to `errors`."""
    # No lock on the storage, so that transfers can run in parallel.
    with contextlib.nullcontext() if on_storage else hub.lock:
        try:
            return _answer(hub, request, headers, body, on_storage)
        except Refusal as refusal:
            if refusal.violation:
                hub.errors.append(f"{request.method} {request.path}: {refusal}")
            return refusal.reply
        except Exception:  # a defect of this Hub
            hub.errors.append(f"{request.method} {request.path}: {traceback.format_exc()}")
            return json_reply({"error": "Internal error"}, 500)


def _answer(hub: LoopbackHub, request: Request, headers: Message, body: IO[bytes], on_storage: bool) -> Reply:
    authorization = headers.get("Authorization", "")
    if on_storage and authorization:
        raise Refusal(400, "A token was sent to the storage", violation=True)
    for method, pattern, answer in STORAGE if on_storage else HUB:
        found = pattern.fullmatch(request.path)
        if found and method == request.method.replace("HEAD", "GET"):
            account = hub.accounts.get(authorization.removeprefix("Bearer "))
            if authorization and account is None:
                raise Refusal(401, "Invalid credentials in Authorization header")
            values = {name: unquote(value) for name, value in found.groupdict().items() if value}
            query = dict(parse_qsl(request.query))
            return answer(Call(hub, request, query, values, body, headers.get("Range", ""), account))
    raise Refusal(404, f"Unknown route: {request.method} {request.path}", violation=True)
