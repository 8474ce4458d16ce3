"""Completes a push after its commit, and looks at what is then on the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from ..errors import ShortVError
from ..hub import retry
from .commit import Commit
from .plan import Plan
from .repository import Repository, list_files, list_references

_PULL_REQUEST = "refs/pr/"


def complete(repository: Repository, plan: Plan, commit: Commit, tags: tuple[str, ...]) -> None:
    """Sets the tags, and compares what is then on the Hub with what was asked for. The commit stays in any case.

    Args:
        repository: as it was before the push.
        plan: as it was carried out.
        commit: holds the package.
        tags: none for a pull request.

    Raises:
        ShortVError: something is missing or different, or cannot be seen.
    """
    api, repo_id = repository.api, repository.repo_id
    made = f"the commit {commit.sha} was made in {repo_id}"
    done = made if plan.changed else f"{repo_id} held the package already, at {commit.sha}"
    try:
        if different := plan.differences(list_files(api, repo_id, commit.sha)):
            raise ShortVError(f"it differs from the package: {', '.join(different)}.")
        for name in tags:
            if name not in repository.tags:
                create_tag = partial(api.create_tag, repo_id, tag=name, revision=commit.sha, exist_ok=True)
                retry(create_tag, f"the tag {name}")
        problems = [*_problems(repository, plan, commit), *_problems_of_tags(repository, commit, tags)]
    except ShortVError as error:
        raise ShortVError(f"{done}, but then: {error} Push again: that completes it.") from error
    if problems:
        raise ShortVError(f"{done}, but {'; and '.join(problems)}.")


def _problems(repository: Repository, plan: Plan, commit: Commit) -> Iterator[str]:
    """What of the repository, and of the branch or pull request, is not as it was asked for."""
    api, repo_id, reference = repository.api, repository.repo_id, commit.reference
    info = retry(lambda: api.model_info(repo_id, revision=reference), repo_id)
    if info.id != repo_id:
        yield f"the repository is called {info.id} by now, and the card names {repo_id}: push to {info.id}"
    if repository.target.private and not info.private:
        yield "the repository is public by now, and the package with it: make it private in its settings"
    if info.sha != commit.sha and (different := plan.differences(list_files(api, repo_id, str(info.sha)))):
        changed = ", ".join(different)
        yield f"somebody else changed {changed} on {reference} since: push again if it shall hold this package"
    if reference.startswith(_PULL_REQUEST):
        number = int(reference.removeprefix(_PULL_REQUEST))
        if retry(lambda: api.get_discussion_details(repo_id, number), repo_id).status == "closed":
            yield "the pull request was closed by now: push again to open another"


def _problems_of_tags(repository: Repository, commit: Commit, tags: tuple[str, ...]) -> Iterator[str]:
    """What of the tags is not as it was asked for."""
    if not tags:
        return
    branches, found = list_references(repository.api, repository.repo_id)
    for name in tags:
        if name not in found:
            yield f"the tag {name} is missing by now: push again"
        elif found[name] != repository.tags.get(name, commit.sha):
            yield f"somebody else set the tag {name} on {found[name]}: delete that tag, then push again"
        if name in branches:
            yield f"there is a branch {name}, too, which people get instead of the tag: delete the branch"
