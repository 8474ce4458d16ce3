"""Downloads from the Hub, if the disk has room."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import check_space
from .xet import plain_if_xet_fails

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo


def download_files(repo_id: str, info: ModelInfo, snapshot: Path, names: Collection[str], what: str) -> None:
    """Downloads files of one commit into the Hub's cache, if the disk has room for them.

    Args:
        repo_id: the repository.
        info: the repository at this commit, with the metadata of its files.
        snapshot: the commit's folder in the cache.
        names: the files.
        what: the subject of the error, such as ``"downloading acme/base"``.

    Raises:
        ShortVError: the disk is too full.
    """
    from huggingface_hub import snapshot_download

    advice = "make room there, or set HF_HOME to a folder on another disk"
    check_space(snapshot, _bytes_to_download(info, snapshot, names), what, advice)
    plain_if_xet_fails(lambda: snapshot_download(repo_id, revision=info.sha, allow_patterns=[*names]))


def cached_repo_id(folder: Path) -> str | None:
    """The repository that a folder of the Hub's cache is a snapshot of; None for any other folder."""
    snapshots = folder.resolve().parent
    if snapshots.name != "snapshots" or not snapshots.parent.name.startswith("models--"):
        return None
    return snapshots.parent.name.removeprefix("models--").replace("--", "/")


def _bytes_to_download(info: ModelInfo, snapshot: Path, names: Collection[str]) -> int:
    """The size of the files that are not in the cache yet."""
    blobs, missing = snapshot.parents[1] / "blobs", 0
    for file in info.siblings or ():
        # The cache may have the same content from another commit.
        content = file.lfs.sha256 if file.lfs else file.blob_id
        here = (snapshot / file.rfilename).exists() or (content and (blobs / content).exists())
        if file.rfilename in names and not here:
            missing += file.size or 0
    return missing
