"""Finds base models on the Hub or on disk."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ShortVError
from ..hub import download_files, hub_error
from ..records import CARD_NAME, CARRIED, CONFIG_NAME, INDEX_NAME
from .checks import check_weights, inspect_files, most_bytes
from .listing import left_out, names_in, names_of, recall_names, remember_names
from .model import BaseModel


def resolve_base(base: str | Path, *, revision: str | None = None, weights: bool = True) -> BaseModel:
    """Finds a base model, pins it and checks its files.

    The config and the list of files are checked before any weights are downloaded. With ``HF_HUB_OFFLINE=1``, the
    base comes from the Hub's cache.

    Args:
        base: a Hub id or a local folder. If both exist, the folder is taken.
        revision: branch, tag or commit of a Hub repository; None is its main branch.
        weights: whether to fetch and check the weights, too (see `fetch_weights`).

    Raises:
        ShortVError: the base does not exist or cannot be reached; its family is not supported; its files are
            incomplete, damaged, unsafe or in a layout that transformers does not load.
    """
    name = str(base)
    folder = Path(os.path.expanduser(name))
    if name and os.path.isdir(folder):
        if revision is not None:
            raise ShortVError(f"{name} is a local folder, which has no revisions; leave out `revision`.")
        names = names_in(folder)
        config, family, files = inspect_files(name, folder, names)
        resolved = BaseModel(name, None, None, folder, config, family, files, left_out(names, files, config))
    elif isinstance(base, Path) or not name or name[0] in "./~" or os.path.exists(folder):
        raise ShortVError(f"there is no folder {name!r}; give a Hub id such as llava-hf/llava-1.5-7b-hf, or a folder.")
    else:
        resolved = _from_hub(name, revision)
    if weights:
        fetch_weights(resolved)
    return resolved


def resolve_pinned(repo_id: str, revision: str, *, weights: bool = True) -> BaseModel:
    """Finds the base that a recipe names: on the Hub, even if a folder has its name.

    Args:
        repo_id: a Hub id.
        revision: a commit.
        weights: whether to fetch and check the weights, too (see `fetch_weights`).

    Raises:
        ShortVError: as in `resolve_base`.
    """
    base = _from_hub(repo_id, revision)
    if weights:
        fetch_weights(base)
    return base


def fetch_weights(base: BaseModel) -> None:
    """Downloads the weights of a base on the Hub; checks the weights of any base.

    Raises:
        ShortVError: the weights cannot be downloaded, do not fit on the disk, or are damaged.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    if base.repo_id is not None:
        try:
            info = HfApi().model_info(base.name, revision=base.revision, files_metadata=True)
            what = f"downloading the weights of {base.name}"
            download_files(base.name, info, base.path, base.weight_files, what)
        except OfflineModeIsEnabled:
            pass  # `resolve_base` found the weights in the cache
        except (HTTPError, OSError) as error:
            raise hub_error(error, f"model {base.name}") from error
    check_weights(base)


def _from_hub(name: str, revision: str | None) -> BaseModel:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError, OfflineModeIsEnabled

    what = f"model {name}" + (f" at revision {revision}" if revision else "")
    try:
        try:
            info = HfApi().model_info(name, revision=revision, files_metadata=True)
        except OfflineModeIsEnabled:
            path = Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIG_NAME]))
            repo_id, names = name, names_in(path)
            everything = recall_names(path.name)  # the snapshot has what was downloaded only
        else:
            repo_id = info.id  # differs from `name` if the repository was renamed
            sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
            names = everything = names_of(sizes)
            remember_names(str(info.sha), names)
            # With the revision as given, so that the cache knows it offline, too.
            path = Path(snapshot_download(name, revision=revision, allow_patterns=_small_files(name, sizes)))
            if path.name != info.sha:
                raise ShortVError(f"{what} was changed in this moment; run the command again.")
    except (HTTPError, OSError, HFValidationError) as error:
        raise hub_error(error, what) from error
    config, family, files = inspect_files(name, path, names)
    others = None if everything is None else left_out(everything, files, config)
    return BaseModel(name, repo_id, path.name, path, config, family, files, others)


def _small_files(name: str, sizes: dict[str, int]) -> list[str]:
    """The files that are looked at before the weights are downloaded, none of them too large."""
    small = [file for file in sizes if file in (CONFIG_NAME, INDEX_NAME) or CARRIED.fullmatch(file)]
    for file in small:
        if sizes[file] > (most := most_bytes(file)):
            raise ShortVError(f"{name}: its {file} is larger than {most:,} bytes; use another base.")
    return small + [CARD_NAME] * (sizes.get(CARD_NAME, 0) <= most_bytes(CARD_NAME))
