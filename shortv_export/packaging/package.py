"""A finished package: a folder, or a repository at a commit."""

from __future__ import annotations

from pathlib import Path

from ..errors import ShortVError
from ..files import check_space
from ..hub import bytes_to_download, hub_error, plain_if_xet_fails
from ..records import RECIPE_NAME, Recipe
from .inspection import expected_files


def find_package(name: str, revision: str | None, token: str | None) -> tuple[Path, set[str] | None]:
    """A package's folder, of a repository downloaded first; and for a repository the names of all its files.

    Raises:
        ShortVError: there is no such package, or it cannot be downloaded.
    """
    if not Path(name).is_dir():
        return _download(name, revision, token)
    if revision is not None:
        raise ShortVError(f"{name} is a folder, which has no revisions; leave the revision out.")
    return Path(name).absolute(), None


def _download(repo_id: str, revision: str | None, token: str | None) -> tuple[Path, set[str] | None]:
    """The files of a repository that its recipe names, and the names of all its files."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, HTTPError, OfflineModeIsEnabled

    try:
        try:
            info = HfApi(token=token).model_info(repo_id, revision=revision, files_metadata=True)
        except OfflineModeIsEnabled:
            return Path(snapshot_download(repo_id, revision=revision, local_files_only=True)), None
        commit, names = info.sha, {sibling.rfilename for sibling in info.siblings or ()}
        if RECIPE_NAME not in names:
            raise ShortVError(f"{repo_id} has no {RECIPE_NAME}: it was not published by shortv-export.")
        path = Path(hf_hub_download(repo_id, RECIPE_NAME, revision=commit, token=token))
        recipe = Recipe.load(path)
        wanted = sorted(expected_files(recipe) & names)
        check_space(
            path.parent,
            bytes_to_download(info, path.parent, wanted),
            f"downloading {repo_id}",
            "make room there, or set HF_HOME to a folder on another disk",
        )
        snapshot = plain_if_xet_fails(
            lambda: snapshot_download(repo_id, revision=commit, allow_patterns=wanted, token=token)
        )
        return Path(snapshot), names
    except (HTTPError, EntryNotFoundError, HFValidationError, OSError) as error:
        raise hub_error(error, f"model {repo_id}") from error
