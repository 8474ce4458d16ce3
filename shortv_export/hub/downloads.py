"""Downloads from the Hub: how much is still missing from the cache."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo


def bytes_to_download(info: ModelInfo, snapshot: Path, names: Collection[str]) -> int:
    """The size of those files of a repository that its folder in the Hub's cache does not hold yet.

    Args:
        info: of the repository at one commit, with the files' metadata.
        snapshot: the commit's folder in the cache.
        names: the files.
    """
    blobs, missing = snapshot.parents[1] / "blobs", 0
    for file in info.siblings or ():
        # Another commit may have brought the same content.
        content = file.lfs.sha256 if file.lfs else file.blob_id
        here = (snapshot / file.rfilename).exists() or (content and (blobs / content).exists())
        if file.rfilename in names and not here:
            missing += file.size or 0
    return missing
