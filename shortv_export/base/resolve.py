"""A base is found on the Hub or on disk, and pinned."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ShortVError
from ..files import check_space
from ..hub import bytes_to_download, hub_error, plain_if_xet_fails
from ..records import CARD_NAME, CONFIG_NAME, INDEX_NAME
from .checks import CARRIED, check_weights, inspect_files
from .model import BaseModel

if TYPE_CHECKING:
    pass


def resolve_base(
    base: str | Path, *, revision: str | None = None, weights: bool = True, token: str | None = None
) -> BaseModel:
    """Finds a base model, pins it and checks its files.

    A base on the Hub is refused for its config and its list of files before its weights are downloaded; with
    ``HF_HUB_OFFLINE=1`` it is taken from the cache.

    Args:
        base: a Hub id or a local folder (a folder that exists comes first).
        revision: branch, tag or commit of a Hub repository; None is its main branch.
        weights: fetch and check the weights too. Without them the result can be looked at, not loaded or packaged.
        token: Hub access token; None takes the one that is logged in.

    Raises:
        ShortVError: it does not exist or cannot be reached; its family is not supported; its files are
            incomplete, damaged, unsafe or in a layout that transformers does not load.
    """
    name = str(base)
    folder = Path(base).expanduser()
    if name and folder.is_dir():
        if revision is not None:
            raise ShortVError(f"{name} is a local folder, which has no revisions; leave the revision out.")
        config, family, carried, shards = inspect_files(name, folder, _files_in(folder))
        if weights:
            check_weights(name, folder, shards)
        return BaseModel(name, None, None, folder, config, family, tuple(sorted({*carried, *shards})))
    if isinstance(base, Path) or not name or name[0] in "./~" or folder.exists():
        raise ShortVError(f"there is no folder {name!r}; give a Hub id such as llava-hf/llava-1.5-7b-hf, or a folder.")
    return _from_hub(name, revision, weights, token)


def _from_hub(name: str, revision: str | None, weights: bool, token: str | None) -> BaseModel:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError, OfflineModeIsEnabled

    what = f"model {name}" + (f" at revision {revision}" if revision else "")
    try:
        # By the revision as asked for, so that the cache can answer the same question offline.
        path = Path(snapshot_download(name, revision=revision, token=token, allow_patterns=[CONFIG_NAME]))
        commit = path.name
        try:
            info = HfApi(token=token).model_info(name, revision=commit, files_metadata=weights)
        except OfflineModeIsEnabled:
            repo_id, names = name, _files_in(path)
            config, family, carried, shards = inspect_files(name, path, names)
        else:
            # The canonical id: a renamed repository answers to its old name too.
            repo_id, names = info.id, {sibling.rfilename for sibling in info.siblings or ()}
            small = [file for file in names if file in (CONFIG_NAME, CARD_NAME, INDEX_NAME) or CARRIED.fullmatch(file)]
            snapshot_download(name, revision=commit, token=token, allow_patterns=small)
            config, family, carried, shards = inspect_files(name, path, names)
            if weights:
                check_space(
                    path,
                    bytes_to_download(info, path, shards),
                    f"downloading the weights of {name}",
                    "make room there, or set HF_HOME to a folder on another disk",
                )
                plain_if_xet_fails(
                    lambda: snapshot_download(name, revision=commit, token=token, allow_patterns=[*small, *shards])
                )
    except (HTTPError, OSError, HFValidationError) as error:
        raise hub_error(error, what) from error
    if weights:
        check_weights(name, path, shards)
    return BaseModel(name, repo_id, commit, path, config, family, tuple(sorted({*carried, *shards})))


def _files_in(folder: Path) -> set[str]:
    return {entry.name for entry in os.scandir(folder) if entry.is_file()}
