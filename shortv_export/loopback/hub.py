"""`LoopbackHub`: what it holds, and how to read and change that without a client."""

from __future__ import annotations

import fnmatch
import io
import re
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from .content import ContentStore, pointer_id
from .messages import Request
from .repository import Account, Commit, File, Repo, now
from .server import Fault, Server

_LARGEST_REGULAR_FILE = 10 << 20
# The patterns of the .gitattributes that the Hub puts into every new repository.
_LFS_PATTERNS = (
    "*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack *.npy "
    "*.npz *.onnx *.ot *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors saved_model/**/* "
    "*.tar.* *.tar *.tflite *.tgz *.wasm *.xz *.zip *.zst *tfevents*"
)
_GIT_ATTRIBUTES = re.sub(r"(\S+) ?", r"\1 filter=lfs diff=lfs merge=lfs -text\n", _LFS_PATTERNS).encode()
Files = Mapping[str, bytes | Path | None]


class LoopbackHub:
    """A Hugging Face Hub on the loopback interface, without an account and without a network.

    It speaks the part of the Hub's HTTP protocol that publishing and loading a model need, so the unmodified
    `huggingface_hub` and `transformers` clients run against it:

        with LoopbackHub() as hub:
            hub.create_repo("acme/base", files={"config.json": b"{}", "model.safetensors": Path("w.safetensors")})
            subprocess.run(["hf", "download", "acme/base"], env={**os.environ, **hub.env()})
            assert hub.errors == []

    Like the Hub, it refuses outdated parent commits, wrong checksums and objects that were never uploaded. Requests
    that a correct client never sends are added to `errors`. Datasets and Spaces are named `datasets/acme/samples`.
    There is no Xet storage, so clients need `HF_HUB_DISABLE_XET=1`, which `env` sets.

    It begins without repositories and with one account, `user`, whose `token` has the given `role`.
    """

    page_size = 1000  # entries of a list in one answer

    def __init__(
        self, token: str = "hf_loopback", user: str = "loopback", *, role: Literal["read", "write"] = "write"
    ) -> None:
        self.token = token
        self.user = user
        self.url = ""  # empty before the Hub starts
        self.storage_url = ""  # where large files are; it contains `secret`
        self.secret = secrets.token_urlsafe()
        self.requests: list[Request] = []  # every request, in order
        self.errors: list[str] = []  # what correct clients never do, and defects of this Hub
        self.repos: dict[str, Repo] = {}  # by `Repo.key`
        self.moved: dict[str, str] = {}  # old `Repo.key` -> new one
        self.accounts: dict[str, Account] = {}  # by token
        self.uploads: set[str] = set()  # sha256 of the objects that clients have uploaded
        self.faults: list[Fault] = []  # set by `fail`
        self.content = ContentStore()
        self.lock = threading.RLock()  # held while a request is answered
        self._servers: list[Server] = []
        self.add_token(token, user, role)

    def start(self) -> LoopbackHub:
        """Starts to answer, on two free ports."""
        # As on the Hub, large files have an origin of their own: clients must not send their token there.
        self._servers = [Server(self, storage).start() for storage in (False, True)]
        self.url, storage_url = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)
        self.storage_url = f"{storage_url}/{self.secret}"
        return self

    def stop(self) -> None:
        """Stops answering, closes every connection and deletes what was stored."""
        for server in self._servers:
            server.stop()
        self._servers = []
        self.content.close()

    def __enter__(self) -> LoopbackHub:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def env(self) -> dict[str, str]:
        """The environment variables that make a process use this Hub."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "no_proxy": "127.0.0.1",  # a proxy cannot reach the loopback interface of this machine
        }

    def fail(
        self,
        match: Callable[[Request], bool] | None = None,
        nth: int = 1,
        *,
        status: int = 500,
        when: Literal["before", "during", "after"] = "before",
        action: Literal["status", "drop", "stall", "hang", "page", "cut"] = "status",
        times: int = 1,
        seconds: float = 30.0,
        retry_after: int | None = None,
    ) -> threading.Event:
        """Makes future requests fail: the `nth` that matches and those after it, `times` in all.

        Args:
            match: which requests count; by default all.
            nth: the first that fails, counted from 1.
            status: what the action `status` answers with.
            when: `before` or `after` the Hub acts on the request; or `during` it, after reading half of the body
                (`drop` and `hang` only).
            action: `status` answers with a status. `drop` closes the connection; `after`, a download is cut off
                halfway. `stall` delays the answer. `hang` never answers and waits until the client disconnects.
                `page` answers with an HTML page, as the login page of a network does. `cut`, `after` only, breaks the
                answer off halfway.
            times: how many requests fail.
            seconds: how long `stall` waits. Also the longest wait of `hang` `during` a request: the Hub does not see
                the client disconnect while part of the body is unread.
            retry_after: seconds for a `Retry-After` header.

        Returns:
            An event that is set when the first request fails; with `after`, once the Hub has acted on it.
        """
        accept = match or (lambda _: True)
        fault = Fault(accept, nth, nth + times - 1, status, when, action, seconds, retry_after)
        self.faults.append(fault)
        return fault.struck

    def meanwhile(
        self, change: Callable[[], object], match: Callable[[Request], bool] | None = None, nth: int = 1
    ) -> None:
        """Makes a change just before the Hub answers the `nth` request that matches, as somebody else could."""
        count = 0

        def look(request: Request) -> bool:
            nonlocal count
            count += match is None or match(request)
            if count == nth:
                count += 1
                change()
            return False

        self.fail(look)

    def add_token(
        self,
        token: str,
        user: str,
        role: Literal["read", "write", "fineGrained"] = "read",
        orgs: tuple[str, ...] = (),
        org_role: Literal["read", "write"] = "write",
        permissions: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Accepts `token` as one of `user`, who has `org_role` in `orgs`.

        A fine-grained token has `permissions` by user, organisation or model, such as ``{"acme": ["repo.write"]}``;
        those under ``""`` hold everywhere.
        """
        self.accounts[token] = Account(user, role, tuple(orgs), org_role, permissions or {})

    def create_repo(
        self, repo_id: str, private: bool = False, files: Files | None = None, gated: bool | str = False
    ) -> str:
        """Makes a repository; returns its newest commit. Files given as paths are not copied."""
        with self.lock:
            repo = self.new_repo(repo_id, private, gated, repo_id.split("/")[-2])
            return self.commit(repo_id, files) if files else repo.refs["refs/heads/main"]

    def commit(self, repo_id: str, files: Files, message: str = "Add files", revision: str = "main") -> str:
        """Commits as the repository's owner; returns the new commit. None deletes a file."""
        with self.lock:
            repo = self.repos[repo_id]
            head = repo.resolve(revision)
            tree = dict(head.files)
            for path, content in files.items():
                if content is None:
                    del tree[path]
                    continue
                if isinstance(content, Path):
                    sha256, size = self.content.refer(content)
                else:
                    sha256, size = self.content.store(io.BytesIO(content))
                with self.content[sha256].open("rb") as file:
                    lfs = self.upload_mode(head, path, size, file.read(512)) == "lfs"
                tree[path] = self.new_file(repo, sha256, size, lfs)
            return repo.add_commit(repo.ref(revision), tree, message, author=repo.namespace).sha

    def rename(self, key: str, new_key: str) -> None:
        """Renames a repository. The old name leads to the new one."""
        with self.lock:
            repo = self.repos[new_key] = self.repos.pop(key)
            repo.key, self.moved[key] = new_key, new_key
            self.moved.pop(new_key, None)

    def current_key(self, key: str) -> str:
        """The key of the repository that a name leads to; the name itself if there is none."""
        if key in self.repos:
            return key
        alike = next((each for each in (*self.repos, *self.moved) if each.casefold() == key.casefold()), key)
        return self.current_key(self.moved[alike]) if alike in self.moved else alike

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """The content of every file, by path."""
        with self.lock:
            tree = self.repos[repo_id].resolve(revision).files
            return {path: self.content[file.sha256].read_bytes() for path, file in sorted(tree.items())}

    def commits(self, repo_id: str, revision: str = "main") -> list[Commit]:
        """The commits that lead to `revision`, newest first."""
        with self.lock:
            repo = self.repos[repo_id]
            return list(repo.history(repo.resolve(revision)))

    def new_repo(self, key: str, private: bool, gated: bool | str, author: str) -> Repo:
        """Makes a repository with the `.gitattributes` of the Hub."""
        if self.current_key(key) in self.repos:
            raise ValueError(f"{key} exists")
        repo = self.repos[key] = Repo(key, private, gated, now())
        tree = {".gitattributes": self.new_file(repo, *self.content.store(io.BytesIO(_GIT_ATTRIBUTES)), lfs=False)}
        repo.add_commit("refs/heads/main", tree, "initial commit", author=author)
        return repo

    def new_file(self, repo: Repo, sha256: str, size: int, lfs: bool) -> File:
        """A file with stored content, for a commit to `repo`."""
        if lfs:
            repo.objects.add(sha256)
        return File(sha256, size, pointer_id(sha256, size) if lfs else self.content.blob_id(sha256, size), lfs)

    def upload_mode(self, commit: Commit, path: str, size: int, sample: bytes) -> str:
        """How a file must be uploaded: `lfs` if its name is listed, or it is large or binary; else `regular`."""
        patterns: list[str] = []
        if attributes := commit.files.get(".gitattributes"):
            lines = self.content[attributes.sha256].read_text("utf-8").splitlines()
            patterns = [line.split()[0] for line in lines if "filter=lfs" in line]
        name = path.rsplit("/", 1)[-1]
        listed = any(fnmatch.fnmatch(path if "/" in pattern else name, pattern) for pattern in patterns)
        return "lfs" if size and (listed or size > _LARGEST_REGULAR_FILE or b"\0" in sample) else "regular"
