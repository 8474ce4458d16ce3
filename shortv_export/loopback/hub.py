"""A Hugging Face Hub on the loopback interface.

`LoopbackHub` speaks as much of the Hub's HTTP protocol as publishing and loading a model take, so that the
unmodified `huggingface_hub` and `transformers` clients run against it with no account and no network:

    with LoopbackHub() as hub:
        hub.create_repo("acme/base", files={"config.json": b"{}", "model.safetensors": Path("w.safetensors")})
        subprocess.run(["hf", "download", "acme/base"], env={**os.environ, **hub.env()})
        assert hub.errors == []

It is strict where the Hub is, so that a client's defect shows up here and not there: it refuses stale
parents, wrong checksums and objects that were never uploaded, and notes in `errors` what no correct client
sends. Every request is logged in `requests`; `fail` makes any of them go wrong, before or after the Hub has
acted on it.

Large files travel as on the Hub: their content lives on a second origin, which is reached through secret
addresses and must never be shown a token. There is no Xet storage, so clients need `HF_HUB_DISABLE_XET=1`,
which `env` sets. Datasets and Spaces are named with their prefix, as in addresses: `datasets/acme/samples`.
"""

from __future__ import annotations

import base64
import contextlib
import fnmatch
import hashlib
import io
import json
import re
import secrets
import socket
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any, Literal
from urllib.parse import parse_qs, parse_qsl, unquote, urlencode

_CHUNK = 1 << 20
_LARGEST_REGULAR_FILE = 10 << 20
# The patterns of the .gitattributes that the Hub puts into every new repository.
_LFS_PATTERNS = (
    "*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack *.npy "
    "*.npz *.onnx *.ot *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors saved_model/**/* "
    "*.tar.* *.tar *.tflite *.tgz *.wasm *.xz *.zip *.zst *tfevents*"
)
_GIT_ATTRIBUTES = re.sub(r"(\S+) ?", r"\1 filter=lfs diff=lfs merge=lfs -text\n", _LFS_PATTERNS).encode()
_FRONT_MATTER = re.compile(r"\s*---\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", re.DOTALL)
_MODEL_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?", re.ASCII)


@dataclass
class Request:
    """One request as the Hub saw it."""

    method: str
    path: str  # as it was sent: percent-encoded, without the query
    query: str = ""
    received: int = 0  # bytes of its body
    status: int = 0  # of the answer; stays 0 where the connection was dropped instead


@dataclass(frozen=True)
class File:
    """One file of a commit's tree."""

    sha256: str
    size: int
    oid: str  # the git blob id: of the content, or of the pointer that stands in for it in LFS
    lfs: bool


@dataclass(frozen=True)
class Commit:
    """One commit: `files` is its whole tree, by path."""

    sha: str
    parent: str | None
    message: str
    description: str
    author: str
    date: str
    files: Mapping[str, File]


@dataclass(frozen=True)
class _Account:
    user: str
    role: str
    orgs: tuple[str, ...]
    org_role: str
    permissions: Mapping[str, Sequence[str]]

    def belongs_to(self, namespace: str) -> bool:
        return namespace in (self.user, *self.orgs)

    def may_write_to(self, namespace: str) -> bool:
        return namespace == self.user or (namespace in self.orgs and self.org_role != "read")

    def is_permitted(self, namespace: str | None, repo_id: str | None) -> bool:
        """Whether the token's role allows to write; where no namespace is named, something somewhere."""
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


@dataclass
class _Discussion:
    num: int
    title: str
    description: str
    author: str
    status: str
    base: str  # the branch that a pull request is made to; empty for a plain discussion
    date: str

    @property
    def kind(self) -> str:
        return "pull_request" if self.base else "discussion"


@dataclass
class _Repo:
    key: str  # `owner/name`, with `datasets/` or `spaces/` in front where it is not a model
    private: bool
    gated: bool | str
    created: str
    refs: dict[str, str] = field(default_factory=dict)  # full ref name -> commit sha
    commits: dict[str, Commit] = field(default_factory=dict)
    objects: set[str] = field(default_factory=set)  # sha256 of the LFS objects that commits here may use
    discussions: list[_Discussion] = field(default_factory=list)

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


@dataclass
class _Fault:
    match: Callable[[Request], bool]
    first: int
    last: int
    status: int
    when: str
    action: str
    seconds: float
    retry_after: int | None = None
    struck: threading.Event = field(default_factory=threading.Event)
    seen: int = 0

    def strikes(self, request: Request) -> bool:
        if not self.match(request):
            return False
        self.seen += 1
        return self.first <= self.seen <= self.last


_NO_FAULT = _Fault(lambda _: False, 0, 0, 0, "", "", 0.0)


@dataclass
class _Reply:
    status: int
    headers: dict[str, str]
    body: bytes | Path = b""
    start: int = 0  # where in the file to begin, and how much of it to send
    length: int = 0


class _Refusal(Exception):
    """An answer other than success. A `violation`, which no correct client draws, goes into `errors`."""

    def __init__(self, status: int, message: str, code: str = "", violation: bool = False, **body: Any) -> None:
        super().__init__(message)
        self.violation = violation
        headers = {"X-Error-Message": message.replace("\n", " "), **({"X-Error-Code": code} if code else {})}
        self.reply = _json({"error": message, **body}, status, headers)


@dataclass
class _Call:
    """A request on its way through a route, which finds what its path names looked up here."""

    request: Request
    query: dict[str, str]
    values: dict[str, str]
    body: IO[bytes]
    range: str
    account: _Account | None
    repo: _Repo = field(init=False)
    commit: Commit = field(init=False)

    def json(self) -> dict[str, Any]:
        try:
            data = json.load(self.body)
        except ValueError as error:
            raise _Refusal(400, f"The body is not JSON: {error}", violation=True) from error
        return data if isinstance(data, dict) else {}


_Answer = Callable[["LoopbackHub", _Call], _Reply]
_HUB_ROUTES: list[tuple[str, re.Pattern[str], _Answer]] = []
_STORAGE_ROUTES: list[tuple[str, re.Pattern[str], _Answer]] = []
_ID = r"[\w.-]+(?:/[\w.-]+)?"
_PLACEHOLDERS = {
    "{api}": rf"/api/(?P<kind>models|datasets|spaces)/(?P<id>{_ID})",
    "{key}": rf"(?P<key>(?:datasets/|spaces/)?{_ID})",
    "{rev}": r"(?P<rev>refs/(?:pr|convert)/[^/]+|[^/]+)",
    "{path}": r"(?P<path>.+)",
    "{name}": r"(?P<name>[^/]+)",
    "{object}": r"(?P<secret>[^/]+)/(?P<sha256>[0-9a-f]{64})",
}


def _route(method: str, template: str, storage: bool = False) -> Callable[[_Answer], _Answer]:
    """Make a method of `LoopbackHub` the answer to `method template`."""
    for placeholder, pattern in _PLACEHOLDERS.items():
        template = template.replace(placeholder, pattern)

    def register(answer: _Answer) -> _Answer:
        (_STORAGE_ROUTES if storage else _HUB_ROUTES).append((method, re.compile(template, re.ASCII), answer))
        return answer

    return register


class LoopbackHub:
    """A Hub on the loopback interface; see the module's description.

    It begins with one account, `user`, whose `token` may write, and no repository. A repository made here
    carries the `.gitattributes` that the Hub gives every new one. Lists come in pages of `page_size`.
    """

    page_size = 1000

    def __init__(
        self, token: str = "hf_loopback", user: str = "loopback", *, role: Literal["read", "write"] = "write"
    ) -> None:
        self.url = ""
        self.token = token
        self.user = user
        self.errors: list[str] = []
        self.requests: list[Request] = []
        self._lock = threading.RLock()
        self._stopped = threading.Event()
        self._servers: list[_Server] = []
        self._storage_url = ""
        self._secret = secrets.token_urlsafe()
        self._accounts: dict[str, _Account] = {}
        self._repos: dict[str, _Repo] = {}
        self._faults: list[_Fault] = []
        self._folder = tempfile.TemporaryDirectory(prefix="loopback-hub-")
        self._blobs: dict[str, Path] = {}  # sha256 -> content: our copy, or the file that was named
        self._uploads: set[str] = set()  # sha256 of the objects that clients have uploaded
        self.add_token(token, user, role)

    # Running it

    def start(self) -> LoopbackHub:
        """Begin to answer on a free port."""
        # Content is served from a second port because clients decide by origin whether to show their token.
        self._servers = [_Server(self, storage=False), _Server(self, storage=True)]
        self.url, storage = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)
        self._storage_url = f"{storage}/{self._secret}"
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Stop answering, close every connection and forget what was stored."""
        self._stopped.set()
        for server in self._servers:
            server.stop()
        self._servers = []
        self._folder.cleanup()

    def __enter__(self) -> LoopbackHub:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def env(self) -> dict[str, str]:
        """What a process needs in its environment to take this for the Hub."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "no_proxy": "127.0.0.1",  # a proxy cannot reach the loopback interface of this machine
        }

    # Its state

    def add_token(
        self,
        token: str,
        user: str,
        role: Literal["read", "write", "fineGrained"] = "read",
        orgs: tuple[str, ...] = (),
        org_role: Literal["read", "write"] = "write",
        permissions: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Accept `token` as `user`, who has `org_role` in `orgs`.

        A fine-grained token has `permissions`, such as ``{"acme": ["repo.write"]}``: on users, organisations and
        models by their name, and under ``""`` everywhere.
        """
        self._accounts[token] = _Account(user, role, tuple(orgs), org_role, permissions or {})

    def create_repo(
        self,
        repo_id: str,
        private: bool = False,
        files: Mapping[str, bytes | Path] | None = None,
        gated: bool | str = False,
    ) -> str:
        """Make a repository without a client; return its head commit. Files given as paths are not copied."""
        with self._lock:
            repo = self._new_repo(repo_id, private, gated, repo_id.split("/")[-2])
            return self.commit(repo_id, files) if files else repo.refs["refs/heads/main"]

    def commit(
        self,
        repo_id: str,
        files: Mapping[str, bytes | Path | None],
        message: str = "Add files",
        revision: str = "main",
    ) -> str:
        """Commit without a client, as somebody else would; return the new commit. `None` deletes a file."""
        with self._lock:
            repo = self._repos[repo_id]
            head = self._resolve(repo, revision)
            tree = dict(head.files)
            for path, content in files.items():
                if content is None:
                    del tree[path]
                    continue
                stored = self._refer(content) if isinstance(content, Path) else self._store(io.BytesIO(content))
                sha256, size = stored
                with self._blobs[sha256].open("rb") as file:
                    lfs = self._upload_mode(head, path, size, file.read(512)) == "lfs"
                tree[path] = self._file(repo, sha256, size, lfs)
            return self._add_commit(repo, self._ref(repo, revision), tree, message, author=repo.namespace).sha

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """The content of every file, by path."""
        with self._lock:
            tree = self._resolve(self._repos[repo_id], revision).files
            return {path: self._blobs[file.sha256].read_bytes() for path, file in sorted(tree.items())}

    def commits(self, repo_id: str, revision: str = "main") -> list[Commit]:
        """The commits that lead to `revision`, newest first."""
        with self._lock:
            repo = self._repos[repo_id]
            return list(self._history(repo, self._resolve(repo, revision)))

    def fail(
        self,
        match: Callable[[Request], bool] | None = None,
        nth: int = 1,
        *,
        status: int = 500,
        when: Literal["before", "during", "after"] = "before",
        action: Literal["status", "drop", "stall", "hang"] = "status",
        times: int = 1,
        seconds: float = 30.0,
        retry_after: int | None = None,
    ) -> threading.Event:
        """Make the `nth` matching request from now on go wrong, and those after it up to `times` in all.

        `status` answers with that status and, if given, a `Retry-After` header; `drop` closes the connection; `stall`
        holds the answer back for `seconds`; `hang` never answers and waits for the client to go away. `before`, the
        Hub has not acted on the request; `after`, it has, and only the answer is lost. A download that is dropped
        `after` breaks off halfway through. `during`, which goes with `drop` and `hang`, the Hub reads half of the
        request's body and no more of it; it hangs for `seconds` at most, as it cannot see a client go before it has
        read what that sent.

        Returns:
            An event that is set when the first request has been struck; `after`, when the Hub has acted on it.
        """
        accept = match or (lambda _: True)
        fault = _Fault(accept, nth, nth + times - 1, status, when, action, seconds, retry_after)
        self._faults.append(fault)
        return fault.struck

    def _admit(self, request: Request) -> _Fault:
        """Log a request; return the fault that strikes it."""
        with self._lock:
            self.requests.append(request)
            striking = [each for each in self._faults if each.strikes(request)]  # all of them keep count
            return striking[0] if striking else _NO_FAULT

    def _dispatch(self, request: Request, headers: Any, body: IO[bytes], storage: bool) -> _Reply:
        # Content is moved without the lock, which would make parallel transfers wait for one another.
        with contextlib.nullcontext() if storage else self._lock:
            try:
                authorization = headers.get("Authorization", "")
                if storage and authorization:
                    raise _Refusal(400, "A token was sent to the storage", violation=True)
                for method, pattern, answer in _STORAGE_ROUTES if storage else _HUB_ROUTES:
                    found = pattern.fullmatch(request.path)
                    if found and method == request.method.replace("HEAD", "GET"):
                        values = {name: unquote(value) for name, value in found.groupdict().items() if value}
                        query, account = dict(parse_qsl(request.query)), self._account(authorization)
                        call = _Call(request, query, values, body, headers.get("Range", ""), account)
                        self._look_up(call)
                        return answer(self, call)
                raise _Refusal(404, f"Unknown route: {request.method} {request.path}", violation=True)
            except _Refusal as refusal:
                if refusal.violation:
                    self.errors.append(f"{request.method} {request.path}: {refusal}")
                return refusal.reply
            except Exception:  # a defect of this Hub must not pass for one of the client's
                self.errors.append(f"{request.method} {request.path}: {traceback.format_exc()}")
                return _json({"error": "Internal error"}, 500)

    # Who may do what

    def _account(self, authorization: str) -> _Account | None:
        if not authorization:
            return None
        account = self._accounts.get(authorization.removeprefix("Bearer "))
        if account is None:
            raise _Refusal(401, "Invalid credentials in Authorization header")
        return account

    def _look_up(self, call: _Call) -> None:
        key = call.values.get("key")
        if "id" in call.values:
            key = _key(call.values["kind"].removesuffix("s"), call.values["id"])
        if key is not None:
            call.repo = self._readable(call, key)
        if "rev" in call.values:
            call.commit = self._resolve(call.repo, call.values["rev"])

    def _readable(self, call: _Call, key: str) -> _Repo:
        repo = self._repos.get(key)
        if repo is None or (repo.private and not (call.account and call.account.belongs_to(repo.namespace))):
            # Missing and forbidden look the same and, to the anonymous, like a missing login: as on the Hub.
            raise _Refusal(404 if call.account else 401, "Repository not found", "RepoNotFound")
        return repo

    def _check_gate(self, call: _Call) -> None:
        if call.repo.gated and not (call.account and call.account.belongs_to(call.repo.namespace)):
            message = f"Access to {call.repo.kind} {call.repo.id} is restricted"
            raise _Refusal(403 if call.account else 401, message, "GatedRepo")

    def _writer(self, call: _Call, namespace: str | None) -> _Account:
        """The caller, who must hold a write token and, where a namespace is named, belong to it."""
        if call.account is None:
            raise _Refusal(401, "Invalid username or password.")
        repo = getattr(call, "repo", None)
        if not call.account.is_permitted(namespace, repo and repo.id):
            raise _Refusal(403, "This token may read, but not write")
        if namespace and not call.account.may_write_to(namespace):
            raise _Refusal(403, f"You don't have the rights to write under the namespace {namespace}")
        return call.account

    # Content and history

    def _store(self, stream: IO[bytes]) -> tuple[str, int]:
        digest, size = hashlib.sha256(), 0
        with tempfile.NamedTemporaryFile(dir=self._folder.name, delete=False) as copy:
            for chunk in _chunks(stream):
                digest.update(chunk)
                size += len(chunk)
                copy.write(chunk)
        sha256 = digest.hexdigest()
        self._blobs[sha256] = Path(copy.name).replace(Path(self._folder.name) / sha256)
        return sha256, size

    def _refer(self, path: Path) -> tuple[str, int]:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            for chunk in _chunks(file):
                digest.update(chunk)
        self._blobs[digest.hexdigest()] = path.resolve()
        return digest.hexdigest(), path.stat().st_size

    def _file(self, repo: _Repo, sha256: str, size: int, lfs: bool) -> File:
        if lfs:
            repo.objects.add(sha256)
            pointer = _pointer(sha256, size)
            oid = hashlib.sha1(b"blob %d\0%b" % (len(pointer), pointer)).hexdigest()
            return File(sha256, size, oid, lfs=True)
        digest = hashlib.sha1(b"blob %d\0" % size)
        with self._blobs[sha256].open("rb") as file:
            for chunk in _chunks(file):
                digest.update(chunk)
        return File(sha256, size, digest.hexdigest(), lfs=False)

    def _upload_mode(self, commit: Commit, path: str, size: int, sample: bytes) -> str:
        """How the Hub wants a file to be stored: by pattern, by size, and by whether it looks binary."""
        patterns: list[str] = []
        if attributes := commit.files.get(".gitattributes"):
            lines = self._blobs[attributes.sha256].read_text("utf-8").splitlines()
            patterns = [line.split()[0] for line in lines if "filter=lfs" in line]
        name = path.rsplit("/", 1)[-1]
        listed = any(fnmatch.fnmatch(path if "/" in pattern else name, pattern) for pattern in patterns)
        return "lfs" if size and (listed or size > _LARGEST_REGULAR_FILE or b"\0" in sample) else "regular"

    def _new_repo(self, key: str, private: bool, gated: bool | str, author: str) -> _Repo:
        if key in self._repos:
            raise ValueError(f"{key} exists")
        repo = self._repos[key] = _Repo(key, private, gated, _now())
        tree = {".gitattributes": self._file(repo, *self._store(io.BytesIO(_GIT_ATTRIBUTES)), lfs=False)}
        self._add_commit(repo, "refs/heads/main", tree, "initial commit", author=author)
        return repo

    def _add_commit(
        self,
        repo: _Repo,
        ref: str | None,
        files: dict[str, File],
        message: str,
        description: str = "",
        author: str = "",
    ) -> Commit:
        if ref is None or ref.startswith("refs/tags/"):
            raise _Refusal(400, "Only a branch or a pull request can be committed to")
        parent, date = repo.refs.get(ref), _now()
        tree = sorted((path, file.oid) for path, file in files.items())
        # Git's own commit ids need not be reproduced: nothing outside can recompute them.
        identity = json.dumps([repo.key, len(repo.commits), parent, message, description, author, date, tree])
        sha = hashlib.sha1(identity.encode()).hexdigest()
        commit = Commit(sha, parent, message, description, author, date, files)
        repo.commits[commit.sha] = commit
        repo.refs[ref] = commit.sha
        return commit

    def _ref(self, repo: _Repo, revision: str) -> str | None:
        names = (revision, f"refs/heads/{revision}", f"refs/tags/{revision}")
        return next((name for name in names if name in repo.refs), None)

    def _resolve(self, repo: _Repo, revision: str) -> Commit:
        if ref := self._ref(repo, revision):
            return repo.commits[repo.refs[ref]]
        if re.fullmatch(r"[0-9a-f]{7,40}", revision):
            found = [sha for sha in repo.commits if sha.startswith(revision)]
            if len(found) == 1:
                return repo.commits[found[0]]
        raise _Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def _history(self, repo: _Repo, commit: Commit) -> Iterator[Commit]:
        yield commit
        while commit.parent:
            commit = repo.commits[commit.parent]
            yield commit

    # Accounts and repositories

    @_route("GET", "/api/whoami-v2")
    def _whoami(self, call: _Call) -> _Reply:
        if call.account is None:
            raise _Refusal(401, "Invalid username or password.")
        user = call.account.user
        orgs = [{"type": "org", "name": org, "roleInOrg": call.account.org_role} for org in call.account.orgs]
        token: dict[str, Any] = {"displayName": "loopback", "role": call.account.role}
        if call.account.role == "fineGrained":
            token["fineGrained"] = call.account.fine_grained()
        auth = {"type": "access_token", "accessToken": token}
        return _json({"type": "user", "id": user, "name": user, "fullname": user, "orgs": orgs, "auth": auth})

    @_route("GET", "/api/agent-harnesses")
    def _harnesses(self, call: _Call) -> _Reply:
        """What clients ask for once a day to name their caller in the user agent; none are known here."""
        return _json({"standardEnvVars": [], "harnesses": {}})

    @_route("POST", "/api/repos/create")
    def _create(self, call: _Call) -> _Reply:
        data, account = call.json(), self._writer(call, None)
        key = self._named(call, data)
        self._writer(call, key.split("/")[-2])
        if key in self._repos:
            raise _Refusal(409, "You already created this repo", url=f"{self.url}/{key}")
        private = data.get("visibility") == "private" or bool(data.get("private"))
        repo = self._new_repo(key, private, False, account.user)
        return _json({"url": f"{self.url}/{key}", "name": repo.id, "id": repo.id})

    @_route("DELETE", "/api/repos/delete")
    def _delete(self, call: _Call) -> _Reply:
        repo = self._readable(call, self._named(call, call.json()))
        self._writer(call, repo.namespace)
        del self._repos[repo.key]
        return _json({})

    def _named(self, call: _Call, data: dict[str, Any]) -> str:
        namespace = data.get("organization") or (call.account.user if call.account else "")
        return _key(data.get("type") or "model", f"{namespace}/{data['name']}")

    @_route("PUT", "{api}/settings")
    def _settings(self, call: _Call) -> _Reply:
        self._writer(call, call.repo.namespace)
        data = call.json()
        if "visibility" in data or "private" in data:
            call.repo.private = data.get("visibility") == "private" or bool(data.get("private"))
        call.repo.gated = data.get("gated", call.repo.gated)
        return _json({"private": call.repo.private, "gated": call.repo.gated})

    @_route("GET", "{api}/auth-check(?P<write>/write)?")
    def _auth_check(self, call: _Call) -> _Reply:
        self._check_gate(call)
        if "write" in call.values:
            self._writer(call, call.repo.namespace)
        return _json({})

    @_route("GET", "{api}(?:/revision/{rev})?")
    def _info(self, call: _Call) -> _Reply:
        repo = call.repo
        commit = call.commit if "rev" in call.values else self._resolve(repo, "main")
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(commit.files)]
        for sibling in siblings if call.query.get("blobs") else ():
            file = commit.files[sibling["rfilename"]]
            sibling |= {"blobId": file.oid, "size": file.size}
            if file.lfs:
                lfs = {"sha256": file.sha256, "size": file.size, "pointerSize": _pointer_size(file)}
                sibling["lfs"] = lfs
        card: dict[str, Any] = {}
        if readme := commit.files.get("README.md"):
            card = _front_matter(self._blobs[readme.sha256].read_text("utf-8"))[0]
        info: dict[str, Any] = {"id": repo.id, "modelId": repo.id, "sha": commit.sha}
        info |= {"private": repo.private, "gated": repo.gated, "disabled": False, "siblings": siblings}
        info |= {"createdAt": repo.created, "lastModified": commit.date, "downloads": 0, "likes": 0}
        info |= {"author": repo.namespace, "cardData": card, "tags": card.get("tags") or []}
        return _json(info | {key: card[key] for key in ("library_name", "pipeline_tag") if key in card})

    # Trees and files

    @_route("GET", "{api}/tree/{rev}(?:/{path})?")
    def _tree(self, call: _Call) -> _Reply:
        folder = call.values.get("path", "").strip("/")
        inside = f"{folder}/" if folder else ""
        paths: set[str] = set()
        for path in call.commit.files:
            if path.startswith(inside):
                parts = path[len(inside) :].split("/")
                depths = range(1, len(parts) + 1) if call.query.get("recursive") == "true" else (1,)
                paths.update(inside + "/".join(parts[:depth]) for depth in depths)
        if folder and not paths:
            raise _Refusal(404, f"{folder} does not exist on {call.values['rev']}", "EntryNotFound")
        return self._page(call, [self._path_info(call.commit, path) for path in sorted(paths)])

    @_route("POST", "{api}/paths-info/{rev}")
    def _paths_info(self, call: _Call) -> _Reply:
        form = parse_qs(call.body.read().decode())
        found = (self._path_info(call.commit, path.strip("/")) for path in form.get("paths", []))
        return _json([info for info in found if info is not None])

    def _path_info(self, commit: Commit, path: str) -> dict[str, Any] | None:
        """What the Hub tells of a file or folder; None where there is neither."""
        info: dict[str, Any]
        if file := commit.files.get(path):
            info = {"type": "file", "path": path, "size": file.size, "oid": file.oid}
            if file.lfs:
                info["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": _pointer_size(file)}
                info["xetHash"] = _xet_hash(file.sha256)
        elif below := sorted((p, f.oid) for p, f in commit.files.items() if p.startswith(f"{path}/")):
            # Stands in for git's tree id: it changes exactly when the folder's content does.
            oid = hashlib.sha1(json.dumps(below).encode()).hexdigest()
            info = {"type": "directory", "path": path, "size": 0, "oid": oid}
        else:
            return None
        return info

    def _page(self, call: _Call, items: list[Any]) -> _Reply:
        start = int(call.query.get("cursor", 0))
        end = start + self.page_size
        headers: dict[str, str] = {}
        if end < len(items):
            query = urlencode({**call.query, "cursor": end})
            headers["Link"] = f'<{self.url}{call.request.path}?{query}>; rel="next"'
        return _json(items[start:end], headers=headers)

    @_route("GET", "/{key}/resolve/{rev}/{path}")
    def _download(self, call: _Call) -> _Reply:
        self._check_gate(call)
        headers = {"X-Repo-Commit": call.commit.sha, "Accept-Ranges": "bytes"}
        file = call.commit.files.get(call.values["path"])
        if file is None:
            missing = _Refusal(404, "Entry not found", "EntryNotFound")
            missing.reply.headers.update(headers)  # the commit lets clients remember what is not there
            raise missing
        if file.lfs:
            headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
            # No X-Xet-Hash: it would invite the client to fetch the content from Xet storage.
            return _Reply(302, headers | {"Location": f"{self._storage_url}/{file.sha256}"})
        return self._content(call, file.sha256, headers | {"ETag": f'"{file.oid}"'})

    def _content(self, call: _Call, sha256: str, headers: dict[str, str]) -> _Reply:
        path = self._blobs[sha256]
        size = path.stat().st_size
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", call.range)
        if wanted is None or not any(wanted.groups()):
            return _Reply(200, headers, path, 0, size)
        first, last = wanted.groups()
        start = int(first) if first else max(size - int(last), 0)
        end = min(int(last) + 1, size) if first and last else size
        if start >= end:
            return _Reply(416, {"Content-Range": f"bytes */{size}"})
        headers |= {"Content-Range": f"bytes {start}-{end - 1}/{size}"}
        return _Reply(206, headers, path, start, end - start)

    # Uploads and commits

    @_route("POST", "/api/validate-yaml")
    def _validate_yaml(self, call: _Call) -> _Reply:
        _, *found = _front_matter(call.json().get("content", ""))
        errors, warnings = ([{"message": message} for message in messages] for messages in found)
        return _json({"errors": errors, "warnings": warnings}, 400 if errors else 200)

    @_route("POST", "{api}/preupload/{rev}")
    def _preupload(self, call: _Call) -> _Reply:
        self._writer(call, None if call.query.get("create_pr") else call.repo.namespace)
        answers = []
        for entry in call.json()["files"]:
            sample = base64.b64decode(entry["sample"])
            mode = self._upload_mode(call.commit, entry["path"], entry["size"], sample)
            present = call.commit.files.get(entry["path"])
            oid = (present.sha256 if present.lfs else present.oid) if present else None
            answers.append({"path": entry["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return _json({"files": answers, "commitOid": call.commit.sha})

    @_route("POST", "/{key}\\.git/info/lfs/objects/batch")
    def _lfs_batch(self, call: _Call) -> _Reply:
        data = call.json()
        # Without a ref it is for a pull request, which may come from outside the namespace.
        self._writer(call, call.repo.namespace if "ref" in data else None)
        if data.get("operation") != "upload" or data.get("hash_algo", "sha256") != "sha256":
            raise _Refusal(400, "Only uploads by sha256 are answered", violation=True)
        objects = []
        for entry in data["objects"]:
            answer: dict[str, Any] = {"oid": entry["oid"], "size": entry["size"]}
            if entry["oid"] not in call.repo.objects:
                upload = {"href": f"{self._storage_url}/{entry['oid']}"}
                verify = {"href": f"{self.url}/{call.repo.key}.git/info/lfs/objects/verify"}
                answer["actions"] = {"upload": upload, "verify": verify}
            objects.append(answer)
        return _json({"transfer": "basic", "objects": objects})

    @_route("POST", "/{key}\\.git/info/lfs/objects/verify")
    def _lfs_verify(self, call: _Call) -> _Reply:
        self._writer(call, None)
        data = call.json()
        if data["oid"] not in self._uploads or self._blobs[data["oid"]].stat().st_size != data["size"]:
            raise _Refusal(404, f"Object {data['oid']} was not uploaded", violation=True)
        call.repo.objects.add(data["oid"])
        return _json({"success": True})

    @_route("POST", "{api}/lfs-files/duplicate")
    def _lfs_duplicate(self, call: _Call) -> _Reply:
        """Give another repository the objects of this one. That is all a copy between repositories sends."""
        self._check_gate(call)
        self._writer(call, None)
        data = call.json()
        target = self._readable(call, _key(data["target"]["type"], data["target"]["name"]))
        done: list[dict[str, str]] = []
        failed: list[dict[str, str]] = []
        for entry in data["files"]:
            sha256 = entry["sha256"]
            if sha256 in call.repo.objects and entry["xetHash"] == _xet_hash(sha256):
                target.objects.add(sha256)
                done.append({"sha256": sha256})
            else:
                failed.append({"sha256": sha256, "error": "No such object in the source repository"})
        return _json({"success": done, "failed": failed})

    @_route("GET", "{api}/xet-(?:read|write)-token/{rev}")
    def _xet_token(self, call: _Call) -> _Reply:
        raise _Refusal(404, "Xet storage is not offered here: set HF_HUB_DISABLE_XET=1", violation=True)

    @_route("POST", "{api}/commit/{rev}")
    def _commit(self, call: _Call) -> _Reply:
        repo, base, ref = call.repo, call.commit, self._ref(call.repo, call.values["rev"])
        create_pr = bool(call.query.get("create_pr"))
        account = self._writer(call, None if create_pr else repo.namespace)
        operations = [json.loads(line) for line in call.body if line.strip()]
        if not operations or operations[0]["key"] != "header":
            raise _Refusal(400, "A commit begins with its header", violation=True)
        header = operations[0]["value"]
        summary, description = header["summary"], header.get("description", "")
        parent = header.get("parentCommit")
        if create_pr:
            base = self._resolve(repo, parent) if parent else base
        elif parent and not base.sha.startswith(parent):
            raise _Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(base.files)
        for operation in operations[1:]:
            self._apply(repo, base, files, operation["key"], operation["value"])
        answer: dict[str, Any] = {"success": True}
        if create_pr:
            branch = ref if ref and ref.startswith("refs/heads/") else "refs/heads/main"
            opened = self._open(repo, summary, description, account, "open", branch)
            ref = f"refs/pr/{opened.num}"
            repo.refs[ref] = base.sha
            answer["pullRequestUrl"] = f"{self.url}/{repo.key}/discussions/{opened.num}"
        commit = self._add_commit(repo, ref, files, summary, description, account.user)
        url = f"{self.url}/{repo.key}/commit/{commit.sha}"
        return _json({**answer, "commitOid": commit.sha, "commitUrl": url, "hookOutput": ""})

    def _apply(self, repo: _Repo, base: Commit, files: dict[str, File], key: str, value: Any) -> None:
        """Carry out one line of a commit on the tree `files`."""
        path = value["path"]
        if not all(part not in ("", ".", "..", ".git") for part in path.removesuffix("/").split("/")):
            raise _Refusal(400, f"Not a path: {path!r}", violation=True)
        if key == "file":
            content = base64.b64decode(value["content"], validate=True)
            if self._upload_mode(base, path, len(content), content[:512]) == "lfs":
                raise _Refusal(400, f"{path} must be uploaded with LFS", violation=True)
            if path == "README.md" and (errors := _front_matter(content.decode())[1]):
                raise _Refusal(400, f"Invalid metadata in README.md: {'; '.join(errors)}")
            files[path] = self._file(repo, *self._store(io.BytesIO(content)), lfs=False)
        elif key == "lfsFile":
            sha256 = value["oid"]
            if sha256 not in repo.objects:
                raise _Refusal(400, f"{path}: its LFS object {sha256} was never uploaded", violation=True)
            size = self._blobs[sha256].stat().st_size
            if value.get("size", size) != size:
                raise _Refusal(400, f"{path} has {size} bytes, not {value['size']}", violation=True)
            files[path] = self._file(repo, sha256, size, lfs=True)
        elif key in ("deletedFile", "deletedFolder"):
            inside = f"{path.removesuffix('/')}/" if key == "deletedFolder" else None
            doomed = [each for each in files if (each.startswith(inside) if inside else each == path)]
            if not doomed:
                message = f"A {key[7:].lower()} with this name doesn't exist: {path}"
                raise _Refusal(404, message, "EntryNotFound")
            for each in doomed:
                del files[each]
        else:
            raise _Refusal(400, f"Unknown operation in a commit: {key}", violation=True)

    # References and discussions

    @_route("GET", "{api}/refs")
    def _refs(self, call: _Call) -> _Reply:
        answer: dict[str, list[dict[str, str]]] = {"branches": [], "converts": [], "tags": []}
        groups = {"heads": "branches", "tags": "tags", "convert": "converts"}
        if call.query.get("include_prs"):
            answer["pullRequests"] = []
            groups["pr"] = "pullRequests"
        for ref, sha in call.repo.refs.items():
            _, group, name = ref.split("/", 2)
            if group in groups:
                answer[groups[group]].append({"name": name, "ref": ref, "targetCommit": sha})
        return _json(answer)

    @_route("GET", "{api}/commits/{rev}")
    def _commits(self, call: _Call) -> _Reply:
        history = [
            {"id": each.sha, "title": each.message, "message": each.description, "date": each.date}
            | {"authors": [{"user": each.author}]}
            for each in self._history(call.repo, call.commit)
        ]
        return self._page(call, history)

    @_route("POST", "{api}/tag/{rev}")
    def _tag(self, call: _Call) -> _Reply:
        return self._new_ref(call, f"refs/tags/{call.json()['tag']}", call.commit)

    @_route("POST", "{api}/branch/{name}")
    def _branch(self, call: _Call) -> _Reply:
        start = self._resolve(call.repo, call.json().get("startingPoint") or "main")
        return self._new_ref(call, f"refs/heads/{call.values['name']}", start)

    def _new_ref(self, call: _Call, ref: str, target: Commit) -> _Reply:
        self._writer(call, call.repo.namespace)
        if ref in call.repo.refs:
            raise _Refusal(409, f"Reference already exists: {ref}")
        call.repo.refs[ref] = target.sha
        return _json({})

    @_route("DELETE", "{api}/(?P<group>tag|branch)/{name}")
    def _delete_ref(self, call: _Call) -> _Reply:
        self._writer(call, call.repo.namespace)
        ref = f"refs/{'tags' if call.values['group'] == 'tag' else 'heads'}/{call.values['name']}"
        if ref == "refs/heads/main":
            raise _Refusal(403, "The main branch cannot be deleted")
        if call.repo.refs.pop(ref, None) is None:
            raise _Refusal(404, f"Invalid rev id: {call.values['name']}", "RevisionNotFound")
        return _json({})

    @_route("GET", "{api}/discussions")
    def _discussions(self, call: _Call) -> _Reply:
        kind = call.query.get("type", "all")
        found = [each for each in reversed(call.repo.discussions) if kind in ("all", each.kind)]
        discussions = [self._discussion(call.repo, each) for each in found]
        return _json({"discussions": discussions, "count": len(found), "start": 0})

    @_route("POST", "{api}/discussions")
    def _new_discussion(self, call: _Call) -> _Reply:
        account, data = self._writer(call, None), call.json()
        base = "refs/heads/main" if data.get("pullRequest") else ""
        status, description = "draft" if base else "open", data.get("description", "")
        opened = self._open(call.repo, data["title"], description, account, status, base)
        if base:
            call.repo.refs[f"refs/pr/{opened.num}"] = call.repo.refs[base]
        return _json({"num": opened.num, "url": f"{self.url}/{call.repo.key}/discussions/{opened.num}"})

    @_route("GET", "{api}/discussions/{name}")
    def _discussion_details(self, call: _Call) -> _Reply:
        repo, num = call.repo, call.values["name"]
        found = next((each for each in repo.discussions if str(each.num) == num), None)
        if found is None:
            raise _Refusal(404, f"No discussion {num}")
        latest = {"raw": found.description, "updatedAt": found.date}
        said = {"edited": False, "hidden": False, "latest": latest}
        events = [{"id": f"{num}-0", "type": "comment", "createdAt": found.date, "data": said}]
        answer = self._discussion(repo, found)
        if found.base:
            before = {commit.sha for commit in self._history(repo, self._resolve(repo, found.base))}
            for commit in reversed(list(self._history(repo, self._resolve(repo, f"refs/pr/{num}")))):
                if commit.sha not in before:
                    made = {"subject": commit.message, "oid": commit.sha}
                    event = {"id": commit.sha, "type": "commit", "createdAt": commit.date, "data": made}
                    events.append(event)
            answer |= {"changes": {"base": found.base}, "filesWithConflicts": [], "diff": ""}
        author = {"author": {"name": found.author}}
        return _json({**answer, "events": [event | author for event in events]})

    def _open(
        self, repo: _Repo, title: str, description: str, account: _Account, status: str, base: str
    ) -> _Discussion:
        num = len(repo.discussions) + 1
        repo.discussions.append(_Discussion(num, title, description, account.user, status, base, _now()))
        return repo.discussions[-1]

    def _discussion(self, repo: _Repo, discussion: _Discussion) -> dict[str, Any]:
        return {
            "num": discussion.num,
            "title": discussion.title,
            "status": discussion.status,
            "isPullRequest": bool(discussion.base),
            "author": {"name": discussion.author},
            "createdAt": discussion.date,
            "repo": {"name": repo.id, "type": repo.kind},
        }

    # The storage: a second origin, where a secret in the address stands for the token

    @_route("GET", "/{object}", storage=True)
    def _get_object(self, call: _Call) -> _Reply:
        sha256 = self._admitted(call)
        return self._content(call, sha256, {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})

    @_route("PUT", "/{object}", storage=True)
    def _put_object(self, call: _Call) -> _Reply:
        expected = self._admitted(call)
        sha256, _ = self._store(call.body)
        if sha256 != expected:
            raise _Refusal(400, f"The content has sha256 {sha256}", violation=True)
        self._uploads.add(sha256)
        return _Reply(200, {"ETag": f'"{sha256}"'})

    def _admitted(self, call: _Call) -> str:
        if not secrets.compare_digest(call.values["secret"], self._secret):
            raise _Refusal(403, "No such address", violation=True)
        return call.values["sha256"]


class _Server(ThreadingHTTPServer):
    """One origin of the Hub. It keeps its open connections at hand, for `stop` to close."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, hub: LoopbackHub, storage: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        # Small, so that a client whose body nobody reads on is still in the middle of sending it.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
        self.hub = hub
        self.storage = storage
        self.connections: set[socket.socket] = set()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    """Reads requests off one connection, has the Hub answer them, and plays the faults."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are written apart, and must not wait for an ACK between
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, ValueError):  # the client went away, or `stop` came
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet: `LoopbackHub.requests` is the log."""

    def _serve(self) -> None:
        hub = self.server.hub
        path, _, query = self.path.partition("?")
        request = Request(self.command, path, query, int(self.headers.get("Content-Length") or 0))
        fault = hub._admit(request)
        before, after = (fault.action if fault.when == when else "" for when in ("before", "after"))
        if before == "stall":
            hub._stopped.wait(fault.seconds)
        if before == "drop":
            fault.struck.set()
            return self._drop()
        if fault.when == "during":
            return self._break_off(request, fault)
        with tempfile.SpooledTemporaryFile(max_size=_CHUNK) as body:
            self._read(request, body)
            if before not in ("status", "hang"):
                reply = hub._dispatch(request, self.headers, body, self.server.storage)
        fault.struck.set()
        if "hang" in (before, after):
            self.connection.recv(1, socket.MSG_PEEK)  # returns when the client, or `stop`, closes the connection
            return self._drop()
        if "status" in (before, after):
            headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            reply = _json({"error": "Injected fault"}, fault.status, headers)
        if after == "stall":
            hub._stopped.wait(fault.seconds)
        breaks_off = after == "drop" and request.method == "GET" and reply.length > 1
        if after == "drop" and not breaks_off:
            return self._drop()
        request.status = reply.status
        self._send(reply, halfway=breaks_off)
        if breaks_off:
            self._drop()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _break_off(self, request: Request, fault: _Fault) -> None:
        """Stop reading halfway through the body; let go of the client, at once or after a while."""
        half = request.received // 2
        request.received = 0
        while request.received < half and (chunk := self.rfile.read(min(half - request.received, _CHUNK))):
            request.received += len(chunk)
        fault.struck.set()
        if fault.action == "hang":
            self.server.hub._stopped.wait(fault.seconds)
        self._drop()

    def _read(self, request: Request, body: IO[bytes]) -> None:
        """Receive the body, whole, so that the Hub never waits for a client while it holds its lock."""
        if "Transfer-Encoding" in self.headers:  # the Hub's storage refuses it as well
            self.server.hub.errors.append(f"{request.method} {request.path}: a body of unknown length")
            raise ConnectionError("the end of the request cannot be found")
        left = request.received
        while left and (chunk := self.rfile.read(min(left, _CHUNK))):
            body.write(chunk)
            left -= len(chunk)
        if left:
            raise ConnectionError("the client went away")
        body.seek(0)

    def _send(self, reply: _Reply, halfway: bool) -> None:
        self.send_response(reply.status)
        length = reply.length if isinstance(reply.body, Path) else len(reply.body)
        for name, value in {**reply.headers, "Content-Length": str(length)}.items():
            self.send_header(name, value.encode("ascii", "replace").decode())
        self.end_headers()
        if self.command == "HEAD" or not length:
            return
        if isinstance(reply.body, bytes):
            self.wfile.write(reply.body)
        else:
            with reply.body.open("rb") as file:
                self.connection.sendfile(file, reply.start, length // 2 if halfway else length)

    def _drop(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


def _json(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> _Reply:
    body = json.dumps(data).encode()
    return _Reply(status, {"Content-Type": "application/json; charset=utf-8", **(headers or {})}, body)


def _key(kind: str, repo_id: str) -> str:
    return repo_id if kind == "model" else f"{kind}s/{repo_id}"


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK):
        yield chunk


def _pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def _pointer_size(file: File) -> int:
    return len(_pointer(file.sha256, file.size))


def _xet_hash(sha256: str) -> str:
    """A name for the content in Xet's manner: clients copy between repositories only what has one."""
    return hashlib.sha256(f"xet {sha256}".encode()).hexdigest()


def _front_matter(text: str) -> tuple[dict[str, Any], list[str], list[str]]:
    """A card's metadata, with what the Hub would call errors and warnings in it."""
    try:
        import yaml
    except ImportError:  # huggingface_hub brings it; without it nothing is looked at, and nothing refused
        return {}, [], []
    block = _FRONT_MATTER.match(text)
    if block is None or not block[1].strip():
        return {}, [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(block[1])
    except yaml.YAMLError as error:
        return {}, [f"YAML metadata could not be parsed: {error}"], []
    if not isinstance(data, dict):
        return {}, ["YAML metadata must be a mapping"], []
    texts = ("library_name", "pipeline_tag")
    errors = [f'"{key}" must be a string' for key in texts if not _is_text(data.get(key, ""))]
    for key in ("tags", "datasets", "metrics", "license", "language", "base_model"):
        value = data.get(key) or []
        items = value if isinstance(value, list) else [value]
        if not all(map(_is_text, items)) or (key == "tags" and value is not items):
            errors.append(f'"{key}" must be an array{"" if key == "tags" else " or a string"}')
        elif key == "base_model":
            wrong = [each for each in items if not _MODEL_ID.fullmatch(each)]
            errors += [f'"base_model" with value "{each}" is not valid' for each in wrong]
    if data.get("base_model_relation", "finetune") not in ("adapter", "finetune", "merge", "quantized"):
        errors.append('"base_model_relation" must be one of [adapter, finetune, merge, quantized]')
    return json.loads(json.dumps(data, default=str)), errors, []


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
