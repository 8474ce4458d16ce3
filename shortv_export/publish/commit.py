"""One commit is made, on top of the state that was seen, or not at all."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import ShortVError, one_line
from ..hub import DELAYS, explained, is_of_xet, is_transient, retry, seconds_to_wait, status_of, xet_storage
from .plan import CommitPlan
from .target import NO_WRITING, TargetRepo, list_files

if TYPE_CHECKING:
    pass

# ... during ...


def prepare(target: TargetRepo, private: bool) -> TargetRepo:
    """Makes the repository and the branch if they are missing."""
    api, repo_id = target.api, target.repo_id
    if not target.exists:
        retry(
            lambda: api.create_repo(repo_id, private=private or None, exist_ok=True),
            repo_id,
            {403: "the token may not create it"},
        )
    if target.new_branch:
        retry(
            lambda: api.create_branch(repo_id, branch=target.branch, revision=target.head, exist_ok=True),
            repo_id,
        )
    if not target.exists:
        target = replace(target, exists=True, head=_head(target))
        if set(list_files(api, repo_id, str(target.head))) - {".gitattributes"}:
            raise ShortVError(f"somebody else made {repo_id} during this push; look at it, then push again.")
    return target


def _head(target: TargetRepo) -> str:
    info = retry(lambda: target.api.model_info(target.repo_id, revision=target.branch), target.repo_id)
    return str(info.sha)


def make_commit(target: TargetRepo, plan: CommitPlan) -> tuple[str, str, CommitPlan]:
    """Makes the one commit, on top of `target.head` or not at all.

    Where an answer is lost, the repository is looked at before anything is sent again. Where the Hub will not
    copy the weights (another region, for example), they are uploaded. Where Xet storage fails (behind a proxy that
    does not let it through, for example), they are uploaded without it.

    Returns:
        The commit; the address of the repository or of the pull request; the plan as it was carried out.
    """
    repo_id, url = target.repo_id, f"{target.api.endpoint}/{target.repo_id}"
    if plan.create_pr and (found := _find_pull_request(target, plan)):
        return *found, plan
    delays = list(DELAYS)
    xet = True
    while True:
        try:
            with xet_storage(offered=xet):
                info = target.api.create_commit(
                    repo_id,
                    operations=plan.operations(),
                    commit_message=plan.message,
                    revision=None if plan.create_pr else target.branch,
                    parent_commit=target.head,
                    create_pr=plan.create_pr,
                )
            return info.oid, info.pr_url or url, plan
        except Exception as error:  # told apart by what can be done about it
            moved, transient = status_of(error) == 412, is_transient(error)
            if xet and is_of_xet(error):
                xet = False  # it has tried again and again itself, for minutes
            elif not moved and not transient:
                if not plan.copied:
                    raise explained(error, repo_id, NO_WRITING) from error
                plan = replace(plan, copied=frozenset(), not_copied=one_line(error))
                continue
            if plan.create_pr:
                if found := _find_pull_request(target, plan):
                    return *found, plan
            elif (head := _head(target)) != target.head:
                if not plan.differences(list_files(target.api, repo_id, head)):
                    return head, url, plan
                raise ShortVError(
                    f"{repo_id} was changed during this push; nothing was overwritten. Push again."
                ) from None
            if moved or not delays:
                raise explained(error, repo_id) from error
            time.sleep(seconds_to_wait(error, delays.pop(0)))


def _find_pull_request(target: TargetRepo, plan: CommitPlan) -> tuple[str, str] | None:
    """An open pull request of this user that holds the package: an earlier run's, or one not heard of."""
    api, repo_id = target.api, target.repo_id

    def find() -> tuple[str, str] | None:
        for discussion in api.get_repo_discussions(
            repo_id, author=target.user, discussion_type="pull_request", discussion_status="open"
        ):
            reference = discussion.git_reference
            if discussion.title != plan.message or not reference:
                continue
            if not plan.differences(list_files(api, repo_id, reference)):
                return str(api.model_info(repo_id, revision=reference).sha), discussion.url
        return None

    return retry(find, repo_id)
