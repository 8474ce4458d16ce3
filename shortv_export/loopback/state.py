"""What the Hub holds, and how to look at it and change it without a client."""

from __future__ import annotations

import fnmatch
import io
import re
import secrets
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from .account import Account
from .content import ContentStore, pointer_id
from .messages import Request
from .repository import Commit, File, Repo, now

_LARGEST_REGULAR_FILE = 10 << 20
# The patterns of the .gitattributes that the Hub puts into every new repository.
_LFS_PATTERNS = (
    "*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack *.npy "
    "*.npz *.onnx *.ot *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors saved_model/**/* "
    "*.tar.* *.tar *.tflite *.tgz *.wasm *.xz *.zip *.zst *tfevents*"
)
_GIT_ATTRIBUTES = re.sub(r"(\S+) ?", r"\1 filter=lfs diff=lfs merge=lfs -text\n", _LFS_PATTERNS).encode()


class HubState:
    """Accounts, repositories, the content of files, and the log.

    Attributes:
        url: where the Hub answers; empty before it starts.
        storage_url: where large files are; it contains `secret`.
        page_size: how many entries a page of a list has.
        requests: every request, in order.
        errors: what correct clients never do, and defects of this Hub.
        repos: repositories by `Repo.key`.
        accounts: by token.
        uploads: sha256 of the objects that clients have uploaded.
        lock: held while a request is answered.
    """

    page_size = 1000

    def __init__(self) -> None:
        self.url = ""
        self.storage_url = ""
        self.secret = secrets.token_urlsafe()
        self.requests: list[Request] = []
        self.errors: list[str] = []
        self.repos: dict[str, Repo] = {}
        self.accounts: dict[str, Account] = {}
        self.uploads: set[str] = set()
        self.content = ContentStore()
        self.lock = threading.RLock()

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

        `permissions` are those of a fine-grained token, by the name of a user, an organisation or a model, such as
        ``{"acme": ["repo.write"]}``. Those under ``""`` hold everywhere.
        """
        self.accounts[token] = Account(user, role, tuple(orgs), org_role, permissions or {})

    def create_repo(
        self,
        repo_id: str,
        private: bool = False,
        files: Mapping[str, bytes | Path] | None = None,
        gated: bool | str = False,
    ) -> str:
        """Make a repository without a client; return its head commit. Files given as paths are not copied."""
        with self.lock:
            repo = self.new_repo(repo_id, private, gated, repo_id.split("/")[-2])
            return self.commit(repo_id, files) if files else repo.refs["refs/heads/main"]

    def commit(
        self,
        repo_id: str,
        files: Mapping[str, bytes | Path | None],
        message: str = "Add files",
        revision: str = "main",
    ) -> str:
        """Commit without a client, as somebody else would; return the new commit. `None` deletes a file."""
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
        """A new repository, with the `.gitattributes` that the Hub gives each."""
        if key in self.repos:
            raise ValueError(f"{key} exists")
        repo = self.repos[key] = Repo(key, private, gated, now())
        tree = {".gitattributes": self.new_file(repo, *self.content.store(io.BytesIO(_GIT_ATTRIBUTES)), lfs=False)}
        repo.add_commit("refs/heads/main", tree, "initial commit", author=author)
        return repo

    def new_file(self, repo: Repo, sha256: str, size: int, lfs: bool) -> File:
        """Stored content as a file for a commit of `repo`."""
        if lfs:
            repo.objects.add(sha256)
            return File(sha256, size, pointer_id(sha256, size), lfs=True)
        return File(sha256, size, self.content.blob_id(sha256, size), lfs=False)

    def upload_mode(self, commit: Commit, path: str, size: int, sample: bytes) -> str:
        """How the Hub wants a file to be stored: by pattern, by size, and by whether it looks binary."""
        patterns: list[str] = []
        if attributes := commit.files.get(".gitattributes"):
            lines = self.content[attributes.sha256].read_text("utf-8").splitlines()
            patterns = [line.split()[0] for line in lines if "filter=lfs" in line]
        name = path.rsplit("/", 1)[-1]
        listed = any(fnmatch.fnmatch(path if "/" in pattern else name, pattern) for pattern in patterns)
        return "lfs" if size and (listed or size > _LARGEST_REGULAR_FILE or b"\0" in sample) else "regular"
