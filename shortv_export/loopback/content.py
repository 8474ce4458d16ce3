"""The content of files, and the ids that git, LFS and Xet give it."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

CHUNK = 1 << 20
"""Bytes that are read at a time."""


class ContentStore:
    """Content by its sha256: a copy in a temporary folder, or the file that was named."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="loopback-hub-")
        self._paths: dict[str, Path] = {}

    def __getitem__(self, sha256: str) -> Path:
        return self._paths[sha256]

    def store(self, stream: IO[bytes]) -> tuple[str, int]:
        """Copies what is in `stream`; returns its sha256 and size."""
        digest, size = hashlib.sha256(), 0
        with tempfile.NamedTemporaryFile(dir=self._folder.name, delete=False) as copy:
            for chunk in _chunks(stream):
                digest.update(chunk)
                size += len(chunk)
                copy.write(chunk)
        sha256 = digest.hexdigest()
        self._paths[sha256] = Path(copy.name).replace(Path(self._folder.name) / sha256)
        return sha256, size

    def refer(self, path: Path) -> tuple[str, int]:
        """Takes in a file without copying it; returns its sha256 and size."""
        digest = hashlib.sha256()
        with path.open("rb") as file:
            for chunk in _chunks(file):
                digest.update(chunk)
        self._paths[digest.hexdigest()] = path.resolve()
        return digest.hexdigest(), path.stat().st_size

    def blob_id(self, sha256: str, size: int) -> str:
        """Git's id of the content as a blob."""
        digest = hashlib.sha1(b"blob %d\0" % size)
        with self._paths[sha256].open("rb") as file:
            for chunk in _chunks(file):
                digest.update(chunk)
        return digest.hexdigest()

    def close(self) -> None:
        """Deletes the copies."""
        self._folder.cleanup()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """What git holds in place of a file that is stored with LFS."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def pointer_id(sha256: str, size: int) -> str:
    """Git's id of the LFS pointer as a blob."""
    pointer = lfs_pointer(sha256, size)
    return hashlib.sha1(b"blob %d\0%b" % (len(pointer), pointer)).hexdigest()


def xet_hash(sha256: str) -> str:
    """An id in the form of Xet's. Clients copy only files that have one from repository to repository."""
    return hashlib.sha256(f"xet {sha256}".encode()).hexdigest()


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    while chunk := stream.read(CHUNK):
        yield chunk
