"""The content of files, and the ids that git, LFS and Xet give it."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import IO, Any

CHUNK = 1 << 20  # bytes read at a time


class ContentStore:
    """Content by sha256. It is either a copy in a temporary folder or a file elsewhere on this machine."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="loopback-hub-")
        self._paths: dict[str, Path] = {}

    def __getitem__(self, sha256: str) -> Path:
        return self._paths[sha256]

    def store(self, stream: IO[bytes]) -> tuple[str, int]:
        """Copies a stream; returns its sha256 and size."""
        with tempfile.NamedTemporaryFile(dir=self._folder.name, delete=False) as copy:
            shutil.copyfileobj(stream, copy, CHUNK)
        path = Path(copy.name)
        sha256 = _digest(hashlib.sha256(), path)
        self._paths[sha256] = path.replace(path.with_name(sha256))
        return sha256, self._paths[sha256].stat().st_size

    def refer(self, path: Path) -> tuple[str, int]:
        """Adds a file without copying it; returns its sha256 and size."""
        sha256 = _digest(hashlib.sha256(), path)
        self._paths[sha256] = path.resolve()
        return sha256, path.stat().st_size

    def blob_id(self, sha256: str, size: int) -> str:
        """Git's id of the content as a blob."""
        return _digest(hashlib.sha1(b"blob %d\0" % size), self._paths[sha256])

    def close(self) -> None:
        """Deletes the copies."""
        self._folder.cleanup()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """The text that git stores in place of an LFS file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def pointer_id(sha256: str, size: int) -> str:
    """Git's id of the LFS pointer as a blob."""
    pointer = lfs_pointer(sha256, size)
    return hashlib.sha1(b"blob %d\0%b" % (len(pointer), pointer)).hexdigest()


def xet_hash(sha256: str) -> str:
    """A made-up id of the form that Xet uses. Clients copy a file between repositories only if it has one."""
    return hashlib.sha256(f"xet {sha256}".encode()).hexdigest()


def _digest(digest: Any, path: Path) -> str:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
