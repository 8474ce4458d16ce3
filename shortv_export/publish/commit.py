"""Makes one commit on top of the state that was seen, or none."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from typing import Any

from ..errors import ShortVError, one_line
from ..hub import DELAYS, hub_error, is_of_xet, is_transient, retry, seconds_to_wait, status_of, xet_storage
from .ignored import require_all
from .permissions import TOKENS
from .plan import Plan
from .repository import GIT_ATTRIBUTES, NO_WRITING, ChangedError, Repository, list_files


@dataclass(frozen=True)
class Commit:
    """A commit that holds the package.

    Attributes:
        sha: its id.
        url: of the repository or of the pull request.
        reference: the branch or the pull request, as a revision.
    """

    sha: str
    url: str
    reference: str


def prepare(repository: Repository) -> Repository:
    """Creates the repository and the branch if they are missing.

    Raises:
        ShortVError: the token may not create them; or somebody else created the repository meanwhile, with files.
    """
    api, repo_id, branch = repository.api, repository.repo_id, repository.branch
    if not repository.exists:
        retry(
            lambda: api.create_repo(repo_id, private=repository.target.private or None, exist_ok=True),
            repo_id,
            {403: f"cannot be created: the token may not create it; use one that may, from {TOKENS}"},
        )
        # The Hub's own commit: whatever comes after it is somebody else's, who may have created it meanwhile.
        history = retry(lambda: api.list_repo_commits(repo_id), repo_id)
        if not history:
            raise ShortVError(f"{repo_id} was created, but the Hub names no commit of it; push again.")
        first = history[-1].commit_id
        if set(list_files(api, repo_id, first)) - {GIT_ATTRIBUTES}:
            raise ChangedError(f"somebody else created {repo_id} during this push; look at it, then push again.")
        repository = replace(repository, exists=True, head=first)
    if branch != "main" and branch not in repository.branches:
        retry(lambda: api.create_branch(repo_id, branch=branch, revision=repository.head, exist_ok=True), repo_id)
    return repository


def make_commit(repository: Repository, plan: Plan, message: str) -> tuple[Commit, Plan]:
    """Makes the commit on top of `repository.head`, or none.

    After an error, the repository is looked at before anything is sent again: the commit may have arrived, or another
    push of the same package. If the Hub does not copy the weights (from another region, for example), they are
    uploaded. If Xet storage fails (behind a proxy, for example), they are uploaded without it.

    Returns:
        The commit, and the plan as it was carried out.

    Raises:
        ShortVError: the Hub refuses the commit or cannot be reached, or the repository was changed meanwhile.
    """
    if found := _find_commit(repository, plan, message):
        return found, plan
    failure: Exception | None = None
    xet = True
    for delay in (*DELAYS, None):
        try:
            with xet_storage(offered=xet):
                return _send(repository, plan, message), plan
        except ShortVError:
            raise
        except Exception as error:  # the client raises many kinds
            failure = error
        if found := _find_after(failure, repository, plan, message):
            return found, plan
        if xet and is_of_xet(failure):
            xet = False  # Xet has retried by itself, for minutes
        elif status_of(failure) == 412 or is_transient(failure):
            if delay is not None:
                time.sleep(seconds_to_wait(failure, delay))
        elif plan.copied:
            plan = replace(plan, copied=frozenset(), not_copied=one_line(failure))
            plan.require_undamaged()
        else:
            break
    raise hub_error(failure, repository.repo_id, NO_WRITING) from failure  # type: ignore[arg-type]


def _send(repository: Repository, plan: Plan, message: str) -> Commit:
    """Uploads the files and commits them: all of them, as the plan has them, or none."""
    from huggingface_hub import CommitOperationAdd

    api, repo_id, create_pr = repository.api, repository.repo_id, repository.target.create_pr
    operations = plan.operations()
    additions = [operation for operation in operations if isinstance(operation, CommitOperationAdd)]
    paths = {each.path_in_repo: each.path_or_fileobj for each in additions if isinstance(each.path_or_fileobj, str)}
    before = {name: _state(path) for name, path in paths.items()}
    where: dict[str, Any] = {"revision": None if create_pr else repository.branch, "create_pr": create_pr}
    api.preupload_lfs_files(repo_id, additions, free_memory=False, **where)
    # Hours may have passed since the last look.
    repository.check_unchanged(retry(lambda: api.model_info(repo_id), repo_id))
    require_all(additions, repo_id)
    for addition in additions:
        name = addition.path_in_repo
        # Xet hashes a file while it sends it. Without Xet it is read once more, and must not have changed since.
        sent = addition.upload_info.sha256.hex()
        if sent != plan.content[name].sha256 or (name in paths and _state(paths[name]) != before[name]):
            raise ShortVError(
                f"{name} was changed during this push, so nothing was committed; package the base again."
            )
    info = api.create_commit(repo_id, operations, commit_message=message, parent_commit=repository.head, **where)
    return Commit(info.oid, info.pr_url or repository.url, info.pr_revision or repository.branch)


def _state(path: str) -> tuple[int, ...]:
    """What changes when a file is written to or replaced, even if its old modification time is set again."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _find_commit(repository: Repository, plan: Plan, message: str) -> Commit | None:
    """The commit, if it has been made: by an earlier try, or by another push of the same package.

    Raises:
        ShortVError: the repository was changed in another way since it was looked at.
    """
    api, repo_id, branch, head = repository.api, repository.repo_id, repository.branch, repository.head
    if repository.target.create_pr:
        found = _find_pull_request(repository, plan, message)
        if found is None:
            repository.check_unchanged(retry(lambda: api.model_info(repo_id), repo_id))
        return found
    info = retry(lambda: api.model_info(repo_id, revision=branch), repo_id)
    if info.sha == head:
        repository.check_unchanged(info)
        return None
    history = [each.commit_id for each in retry(lambda: api.list_repo_commits(repo_id, revision=branch), repo_id)]
    since = history[: history.index(head)] if head in history else history
    # Only the oldest can be on top of what was seen. Others may have changed more since; the newest is what counts.
    for sha in dict.fromkeys((*since[-1:], *since[:1])):
        if not plan.differences(list_files(api, repo_id, sha)):
            return Commit(sha, repository.url, branch)
    raise ChangedError(f"{repo_id} was changed during this push; nothing was overwritten. Push again.")


def _find_after(failure: Exception, repository: Repository, plan: Plan, message: str) -> Commit | None:
    """As `_find_commit`, after a failed try. If that fails, too, nobody knows whether the commit was made."""
    try:
        return _find_commit(repository, plan, message)
    except ChangedError:
        raise
    except ShortVError as error:
        raise ShortVError(
            f"the push to {repository.repo_id} broke off ({one_line(failure)}), and whether its commit arrived is not "
            f"known: {error} Push again: that completes it."
        ) from failure


def _find_pull_request(repository: Repository, plan: Plan, message: str) -> Commit | None:
    """This user's open pull request with the package, which an earlier try may have made."""
    api, repo_id = repository.api, repository.repo_id

    def find() -> Commit | None:
        for discussion in api.get_repo_discussions(
            repo_id, author=repository.user, discussion_type="pull_request", discussion_status="open"
        ):
            reference = discussion.git_reference
            if discussion.title != message or not reference:
                continue
            if not plan.differences(list_files(api, repo_id, reference)):
                sha = str(api.model_info(repo_id, revision=reference).sha)
                return Commit(sha, discussion.url, reference)
        return None

    return retry(find, repo_id)
