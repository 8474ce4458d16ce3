"""Compares local files with files on the Hub."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile


@dataclass(frozen=True)
class LocalFile:
    """A local file, to be compared with a file on the Hub.

    Attributes:
        source: its path, or its content if the file on disk differs.
        size: bytes.
        sha256: of the content. For weights it comes from the recipe, since reading them takes long.
    """

    source: Path | bytes
    size: int
    sha256: str

    def is_at(self, remote: RepoFile | None) -> bool:
        """Whether the file on the Hub has the same content."""
        if remote is None or remote.size != self.size:
            return False
        if remote.lfs:
            return remote.lfs.sha256 == self.sha256
        # The Hub keeps only small files as git blobs.
        content = self.source if isinstance(self.source, bytes) else self.source.read_bytes()
        return remote.blob_id == hashlib.sha1(b"blob %d\0" % self.size + content).hexdigest()
