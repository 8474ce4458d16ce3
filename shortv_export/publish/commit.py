"""Makes one commit on top of the state that was seen, or none."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import ShortVError, one_line
from ..hub import DELAYS, hub_error, is_of_xet, is_transient, retry, seconds_to_wait, status_of, xet_storage
from .permissions import TOKENS
from .plan import Plan
from .repository import GIT_ATTRIBUTES, NO_WRITING, Repository, check_visibility, list_files

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo


def prepare(repository: Repository) -> Repository:
    """Creates the repository and the branch if they are missing.

    Raises:
        ShortVError: the token may not create them; or somebody else created the repository meanwhile, with files or
            in public.
    """
    api, repo_id, branch = repository.api, repository.repo_id, repository.branch
    if not repository.exists:
        retry(
            lambda: api.create_repo(repo_id, private=repository.target.private or None, exist_ok=True),
            repo_id,
            {403: f"cannot be created: the token may not create it; use one that may, from {TOKENS}"},
        )
    if branch != "main" and branch not in repository.branches:
        retry(lambda: api.create_branch(repo_id, branch=branch, revision=repository.head, exist_ok=True), repo_id)
    if not repository.exists:
        info = _look_again(repository)
        check_visibility(info, repository.target)  # somebody else may have created it meanwhile
        repository = replace(repository, exists=True, head=str(info.sha))
        if set(list_files(api, repo_id, str(repository.head))) - {GIT_ATTRIBUTES}:
            raise ShortVError(f"somebody else created {repo_id} during this push; look at it, then push again.")
    return repository


def make_commit(repository: Repository, plan: Plan, message: str) -> tuple[str, str, Plan]:
    """Makes the commit on top of `repository.head`, or none.

    After an error, the repository is looked at before anything is sent again: the commit may have arrived. If the Hub
    does not copy the weights (from another region, for example), they are uploaded. If Xet storage fails (behind a
    proxy, for example), they are uploaded without it.

    Returns:
        The commit; the URL of the repository or of the pull request; the plan as it was carried out.

    Raises:
        ShortVError: the Hub refuses the commit or cannot be reached, or the repository was changed meanwhile.
    """
    repo_id, create_pr = repository.repo_id, repository.target.create_pr
    if create_pr and (found := _find_pull_request(repository, plan, message)):
        return *found, plan
    delays = list(DELAYS)
    xet = True
    while True:
        try:
            with xet_storage(offered=xet):
                info = repository.api.create_commit(
                    repo_id,
                    operations=plan.operations(),
                    commit_message=message,
                    revision=None if create_pr else repository.branch,
                    parent_commit=repository.head,
                    create_pr=create_pr,
                )
            return info.oid, info.pr_url or repository.url, plan
        except Exception as error:  # the client raises many kinds
            moved, transient = status_of(error) == 412, is_transient(error)
            if xet and is_of_xet(error):
                xet = False  # Xet has retried by itself, for minutes
            elif not moved and not transient:
                if not plan.copied:
                    raise hub_error(error, repo_id, NO_WRITING) from error
                plan = replace(plan, copied=frozenset(), not_copied=one_line(error))
                continue
            if create_pr:
                if found := _find_pull_request(repository, plan, message):
                    return *found, plan
            elif (head := str(_look_again(repository).sha)) != repository.head:
                if not plan.differences(list_files(repository.api, repo_id, head)):
                    return head, repository.url, plan
                raise ShortVError(
                    f"{repo_id} was changed during this push; nothing was overwritten. Push again."
                ) from None
            if moved or not delays:
                raise hub_error(error, repo_id) from error
            time.sleep(seconds_to_wait(error, delays.pop(0)))


def _look_again(repository: Repository) -> ModelInfo:
    """The repository as it is now, with the commit of the branch."""
    api, repo_id = repository.api, repository.repo_id
    return retry(lambda: api.model_info(repo_id, revision=repository.branch), repo_id)


def _find_pull_request(repository: Repository, plan: Plan, message: str) -> tuple[str, str] | None:
    """Commit and URL of this user's open pull request with the package, which an earlier try may have made."""
    api, repo_id = repository.api, repository.repo_id

    def find() -> tuple[str, str] | None:
        for discussion in api.get_repo_discussions(
            repo_id, author=repository.user, discussion_type="pull_request", discussion_status="open"
        ):
            reference = discussion.git_reference
            if discussion.title != message or not reference:
                continue
            if not plan.differences(list_files(api, repo_id, reference)):
                return str(api.model_info(repo_id, revision=reference).sha), discussion.url
        return None

    return retry(find, repo_id)
