"""Files that a repository's ``.gitignore`` keeps out of commits. huggingface_hub leaves them out without an error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..errors import ShortVError
from ..hub import retry
from .repository import NO_WRITING, Repository

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

_NAME = ".gitignore"
_SHOWN = 10


def check_ignored(repository: Repository, names: Sequence[str]) -> None:
    """Asks the Hub whether it would leave one of these files out of a commit. Nothing is sent but their names.

    Raises:
        ShortVError: it would.
    """
    from huggingface_hub import CommitOperationAdd

    if _NAME not in repository.files:
        return
    branch = repository.branch if repository.branch in repository.branches else "main"

    def ask() -> list[CommitOperationAdd]:
        additions = [CommitOperationAdd(name, b"") for name in names]  # empty files are not uploaded
        create_pr = repository.target.create_pr
        repository.api.preupload_lfs_files(repository.repo_id, additions, revision=branch, create_pr=create_pr)
        return additions

    require_all(retry(ask, repository.repo_id, NO_WRITING), repository.repo_id)


def require_all(additions: Iterable[CommitOperationAdd], repo_id: str) -> None:
    """Raises a ShortVError if the Hub has answered `HfApi.preupload_lfs_files` that it leaves one of them out."""
    names = [addition.path_in_repo for addition in additions if addition._should_ignore]
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise ShortVError(
            f"{repo_id} has a {_NAME} that keeps {', '.join(names[:_SHOWN])}{more} out of commits; "
            f"change or delete the {_NAME} there, then push again."
        )
