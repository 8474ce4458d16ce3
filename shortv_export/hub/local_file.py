"""A file on this machine, compared with one on the Hub."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

_CHUNK = 1 << 20


@dataclass(frozen=True)
class LocalFile:
    """A file as it can be compared with one on the Hub.

    Attributes:
        source: the file, or its content where that is not what lies on disk.
        size: bytes.
        sha256: of the content; of weights as the recipe says, since they are not read for this.
    """

    source: Path | bytes
    size: int
    sha256: str

    def is_at(self, remote: RepoFile | None) -> bool:
        """Whether the repository's file is this one."""
        if remote is None or remote.size != self.size:
            return False
        if remote.lfs:
            return remote.lfs.sha256 == self.sha256
        return remote.blob_id == self._git_id()

    def _git_id(self) -> str:
        digest = hashlib.sha1(b"blob %d\0" % self.size)
        if isinstance(self.source, bytes):
            digest.update(self.source)
        else:
            with self.source.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
        return digest.hexdigest()
