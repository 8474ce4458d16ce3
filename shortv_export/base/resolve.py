"""Finds a base on the Hub or on disk, pins it and checks its files."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ShortVError
from ..hub import download_files, hub_error
from ..records import CARD_NAME, CONFIG_NAME, INDEX_NAME
from .checks import CARRIED, check_weights, inspect_files
from .model import BaseModel


def resolve_base(base: str | Path, *, revision: str | None = None, weights: bool = True) -> BaseModel:
    """Finds a base model, pins it and checks its files.

    A base on the Hub is refused for its config or its list of files before its weights are downloaded. With
    ``HF_HUB_OFFLINE=1`` it is taken from the cache.

    Args:
        base: a Hub id or a local folder. A folder that exists comes first.
        revision: branch, tag or commit of a Hub repository; None is its main branch.
        weights: fetch the weights too (see `fetch_weights`).

    Raises:
        ShortVError: it does not exist or cannot be reached; its family is not supported; its files are
            incomplete, damaged, unsafe or in a layout that transformers does not load.
    """
    name = str(base)
    folder = Path(base).expanduser()
    if name and folder.is_dir():
        if revision is not None:
            raise ShortVError(f"{name} is a local folder, which has no revisions; leave out `revision`.")
        resolved = _checked(name, folder, _files_in(folder))
    elif isinstance(base, Path) or not name or name[0] in "./~" or folder.exists():
        raise ShortVError(f"there is no folder {name!r}; give a Hub id such as llava-hf/llava-1.5-7b-hf, or a folder.")
    else:
        resolved = _from_hub(name, revision)
    if weights:
        fetch_weights(resolved)
    return resolved


def fetch_weights(base: BaseModel) -> None:
    """Downloads the weights of a base that was resolved without them, and checks them. Those of a folder are there.

    Raises:
        ShortVError: they cannot be downloaded, the disk is too full, or they are damaged.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    if base.repo_id is not None:
        try:
            info = HfApi().model_info(base.name, revision=base.revision, files_metadata=True)
            what = f"downloading the weights of {base.name}"
            download_files(base.name, info, base.path, base.weight_files, what)
        except OfflineModeIsEnabled:
            pass  # the cache has been searched for them already
        except (HTTPError, OSError) as error:
            raise hub_error(error, f"model {base.name}") from error
    check_weights(base.name, base.path, base.weight_files)


def _from_hub(name: str, revision: str | None) -> BaseModel:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError, OfflineModeIsEnabled

    what = f"model {name}" + (f" at revision {revision}" if revision else "")
    try:
        # By the revision as asked for, so that the cache can answer the same question offline.
        path = Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIG_NAME]))
        commit = path.name
        try:
            info = HfApi().model_info(name, revision=commit)
        except OfflineModeIsEnabled:
            return _checked(name, path, _files_in(path), name, commit)
        names = {sibling.rfilename for sibling in info.siblings or ()}
        small = [file for file in names if file in (CONFIG_NAME, CARD_NAME, INDEX_NAME) or CARRIED.fullmatch(file)]
        snapshot_download(name, revision=commit, allow_patterns=small)
    except (HTTPError, OSError, HFValidationError) as error:
        raise hub_error(error, what) from error
    return _checked(name, path, names, info.id, commit)  # a renamed repository answers to its old name, too


def _checked(
    name: str, path: Path, names: set[str], repo_id: str | None = None, revision: str | None = None
) -> BaseModel:
    config, family, carried, weights = inspect_files(name, path, names)
    return BaseModel(name, repo_id, revision, path, config, family, tuple(sorted({*carried, *weights})))


def _files_in(folder: Path) -> set[str]:
    return {entry.name for entry in os.scandir(folder) if entry.is_file()}
