"""Publishes the page that shows a package beside its base, as a Space of the same name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..comparison import PAGE_NAME, space_files
from ..errors import ShortVError
from ..hub import LocalFile, hub_error, retry
from ..packaging import Package
from ..records import CARD_NAME
from .repository import GIT_ATTRIBUTES, NO_WRITING, Repository, list_files

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile


@dataclass(frozen=True)
class Space:
    """A Space as it is, or shall be.

    Attributes:
        repository: the model's, whose name it has.
        head: the commit to build on; None if the Space does not exist.
        files: the files at `head`, by path.
    """

    repository: Repository
    head: str | None
    files: dict[str, RepoFile]

    @property
    def url(self) -> str:
        """Its page."""
        return f"{self.repository.api.endpoint}/spaces/{self.repository.repo_id}"

    @property
    def is_ours(self) -> bool:
        """Whether it holds the page."""
        return PAGE_NAME in self.files


def inspect_space(repository: Repository) -> Space | None:
    """Looks whether a Space can be published beside a model; None if none is asked for.

    Raises:
        ShortVError: there is a Space of that name which this tool did not make.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    api, repo_id = repository.api, repository.repo_id
    if not repository.target.space:
        return None
    try:
        info = retry(lambda: api.space_info(repo_id), f"Space {repo_id}", passing=(RepositoryNotFoundError,))
    except RepositoryNotFoundError:
        return Space(repository, None, {})
    space = Space(repository, str(info.sha), list_files(api, repo_id, str(info.sha), "space"))
    if not space.is_ours and set(space.files) - {GIT_ATTRIBUTES, CARD_NAME} and not repository.target.overwrite:
        raise ShortVError(
            f"there is a Space {repo_id} which shortv-export did not make; rename it, or replace its files with "
            "`overwrite`."
        )
    return space


def push_space(space: Space, package: Package) -> str:
    """Publishes the page in one commit, if it is not there already. The package has been published.

    Returns:
        The URL of the Space.

    Raises:
        ShortVError: the Hub refuses; pushing again completes it.
    """
    from huggingface_hub import CommitOperationAdd

    api, repo_id = space.repository.api, space.repository.repo_id
    what = f"the model is published, but the Space {repo_id}"
    private = space.repository.private
    if space.head is None:
        retry(
            lambda: api.create_repo(
                repo_id, repo_type="space", space_sdk="gradio", private=private or None, exist_ok=True
            ),
            what,
            {403: "cannot be created: the token may not create it"},
        )
        space = inspect_space(space.repository) or space  # with what the Hub puts there, or somebody else by now
    files = {
        name: LocalFile(content, len(content), hashlib.sha256(content).hexdigest())
        for name, content in space_files(package, repo_id, private=private).items()
        if not (name == CARD_NAME and name in space.files and space.is_ours)  # it may have been edited
    }
    changed = [name for name, file in files.items() if not file.is_at(space.files.get(name))]
    if not changed:
        return space.url
    operations = [CommitOperationAdd(name, files[name].source) for name in changed]
    try:
        api.create_commit(
            repo_id,
            operations,
            commit_message=f"Compare {repo_id} with its base",
            repo_type="space",
            parent_commit=space.head,
        )
    except Exception as error:  # the client raises many kinds
        raise hub_error(error, what, NO_WRITING) from error
    return space.url
