"""Finds base models on the Hub or on disk."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ShortVError
from ..hub import download_files, hub_error
from ..records import CARD_NAME, CONFIG_NAME, INDEX_NAME
from .checks import CARRIED, check_weights, inspect_files, most_bytes
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
        resolved = BaseModel(name, None, None, folder, *inspect_files(name, folder, _files_in(folder)))
    elif isinstance(base, Path) or not name or name[0] in "./~" or os.path.exists(folder):
        raise ShortVError(f"there is no folder {name!r}; give a Hub id such as llava-hf/llava-1.5-7b-hf, or a folder.")
    else:
        resolved = _from_hub(name, revision)
    if weights:
        fetch_weights(resolved)
    return resolved


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
            repo_id, names = name, _files_in(path)
        else:
            repo_id = info.id  # differs from `name` if the repository was renamed
            sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
            names, small = set(sizes), _small_files(name, sizes)
            # With the revision as given, so that the cache knows it offline, too.
            path = Path(snapshot_download(name, revision=revision, allow_patterns=small))
            if path.name != info.sha:
                raise ShortVError(f"{what} was changed in this moment; run the command again.")
    except (HTTPError, OSError, HFValidationError) as error:
        raise hub_error(error, what) from error
    return BaseModel(name, repo_id, path.name, path, *inspect_files(name, path, names))


def _small_files(name: str, sizes: dict[str, int]) -> list[str]:
    """The files that are looked at before the weights are downloaded, none of them too large."""
    small = [file for file in sizes if file in (CONFIG_NAME, INDEX_NAME) or CARRIED.fullmatch(file)]
    for file in small:
        if sizes[file] > (most := most_bytes(file)):
            raise ShortVError(f"{name}: its {file} is larger than {most:,} bytes; use another base.")
    return small + [CARD_NAME] * (sizes.get(CARD_NAME, 0) <= most_bytes(CARD_NAME))


def _files_in(folder: Path) -> set[str]:
    try:
        # Unlike an entry's own methods, this is False for a link that leads nowhere.
        return {name for name in os.listdir(folder) if os.path.isfile(folder / name)}
    except OSError as error:
        raise ShortVError(f"cannot read {folder}: {error.strerror}.") from None
