"""Finds base models on the Hub or on disk."""

from __future__ import annotations

from pathlib import Path

from ..errors import ShortVError
from ..hub import download_files, hub_error
from ..records import CARD_NAME, CARRIED, CONFIG_NAME, INDEX_NAME
from .checks import check_weights, inspect_files
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
    folder = Path(base).expanduser()
    if name and folder.is_dir():
        if revision is not None:
            raise ShortVError(f"{name} is a local folder, which has no revisions; leave out `revision`.")
        names = names_in(folder)
        config, family, files = inspect_files(name, folder, names)
        resolved = BaseModel(name, None, None, folder, config, family, files, left_out(names, files, config))
    elif isinstance(base, Path) or not name or name[0] in "./~" or folder.exists():
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
    check_weights(base.name, base.path, base.weight_files)


def _from_hub(name: str, revision: str | None) -> BaseModel:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError, OfflineModeIsEnabled

    what = f"model {name}" + (f" at revision {revision}" if revision else "")
    try:
        # With the revision as given, so that the cache knows it offline, too.
        path = Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIG_NAME]))
        commit = path.name
        try:
            info = HfApi().model_info(name, revision=commit)
        except OfflineModeIsEnabled:
            repo_id, names = name, names_in(path)
            everything = recall_names(commit)  # the snapshot has what was downloaded only
        else:
            repo_id = info.id  # differs from `name` if the repository was renamed
            names = everything = names_of(sibling.rfilename for sibling in info.siblings or ())
            remember_names(commit, names)
            small = [file for file in names if file in (CONFIG_NAME, CARD_NAME, INDEX_NAME) or CARRIED.fullmatch(file)]
            snapshot_download(name, revision=commit, allow_patterns=small)
    except (HTTPError, OSError, HFValidationError) as error:
        raise hub_error(error, what) from error
    config, family, files = inspect_files(name, path, names)
    others = None if everything is None else left_out(everything, files, config)
    return BaseModel(name, repo_id, commit, path, config, family, files, others)
