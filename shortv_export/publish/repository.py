"""Looks at the repository to publish to, before anything is changed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ShortVError, one_line
from ..hub import LocalFile, retry
from ..options import Target
from ..records import RECIPE_NAME
from .permissions import TOKENS, check_permissions, check_role

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo, RepoFile

NO_WRITING = {403: f"cannot be written to: the token may not write to it; use one that may, from {TOKENS}"}
GIT_ATTRIBUTES = ".gitattributes"  # the Hub puts it into every new repository
_TAG = re.compile(r"\w[\w.+-]*", re.ASCII)


class ChangedError(ShortVError):
    """Somebody else changed the repository after it was looked at; nothing was committed."""


@dataclass(frozen=True)
class Repository:
    """The state of a repository to publish to. A push commits on top of exactly this state, or not at all.

    Attributes:
        api: a client with the token.
        user: the token's user.
        repo_id: with its namespace; the present name, if the user typed an old one.
        target: where and how to publish.
        exists: whether the repository exists.
        private: whether it is private, or will be.
        head: the commit to build on; None if the repository does not exist.
        files: the files at `head`, by path.
        tags, branches: name to commit.
    """

    api: HfApi
    user: str
    repo_id: str
    target: Target
    exists: bool
    private: bool
    head: str | None
    files: dict[str, RepoFile]
    tags: dict[str, str]
    branches: dict[str, str]

    @property
    def branch(self) -> str:
        """The branch to commit to."""
        return self.target.branch or "main"

    @property
    def url(self) -> str:
        """Its page."""
        return f"{self.api.endpoint}/{self.repo_id}"

    @property
    def is_ours(self) -> bool:
        """Whether it holds a package."""
        return RECIPE_NAME in self.files

    def check_unchanged(self, info: ModelInfo) -> None:
        """Raises a ShortVError if the repository has another name by now, or is public and shall be private."""
        if info.id != self.repo_id:
            raise ChangedError(f"{self.repo_id} was renamed to {info.id} during this push; push to {info.id}.")
        if self.target.private and not info.private:
            raise ChangedError(f"{self.repo_id} is public by now; make it private in its settings, then push again.")

    def check_base(self, base: str | None) -> None:
        """Raises a ShortVError if the base has this repository's name, or had it before it was renamed."""
        from huggingface_hub.errors import HTTPError

        if base is None:
            return
        names = {base.casefold()}
        with suppress(HTTPError, OSError, ValueError):  # gone or unreachable
            names.add(self.api.model_info(base).id.casefold())
        if self.repo_id.casefold() in names:
            raise ShortVError(f"{self.repo_id} is the base itself; publish under another name.")

    def check_tag(self, tag: str, content: Mapping[str, LocalFile]) -> None:
        """Raises a ShortVError if the tag exists on another model. A tag never moves, as people pin it.

        An older card or figure under the tag is no other model.
        """
        if tag in self.branches:
            raise ShortVError(f"{self.repo_id} has a branch {tag}, which is a tag's name; delete the branch first.")
        if tag not in self.tags:
            return
        tagged = list_files(self.api, self.repo_id, tag)
        for name, file in content.items():
            if not name.endswith((".md", ".png")) and not file.is_at(tagged.get(name)):
                raise ShortVError(
                    f"{self.repo_id} has a tag {tag} on another model ({name} differs); delete the tag first."
                )


def describe(push: Any) -> str:
    """Where a `Push` or a `Forecast` goes: the page, whether people can see it, and whether it is new."""
    return f"{push.url}, a {'' if push.exists else 'new '}{'private' if push.private else 'public'} repository,"


def describe_space(push: Any) -> str:
    """The Space of a `Push` or a `Forecast`, to end its line with; empty if none was asked for."""
    return f"; its Space is {push.space}" if push.space else ""


def inspect_repository(repo_id: str, target: Target = Target()) -> Repository:
    """Looks at a repository and checks everything that can be checked before a push.

    Args:
        repo_id: ``user/name``, or ``name`` for the token's user.
        target: where and how to publish.

    Raises:
        ShortVError: a push would fail, or would overwrite what this tool did not publish.
    """
    from huggingface_hub import HfApi, get_token, is_offline_mode
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id

    _check_target(target)
    token = get_token()
    if not token:
        raise ShortVError("no token: run `hf auth login` or set HF_TOKEN.")
    if is_offline_mode():
        raise ShortVError("publishing needs the network, and HF_HUB_OFFLINE is set; unset it.")
    api = HfApi(token=token)
    account = retry(api.whoami, "the Hub", {401: "says that the token is not valid; run `hf auth login` again"})
    check_role(account)
    user = str(account["name"])
    repo_id = repo_id if "/" in repo_id else f"{user}/{repo_id}"
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ShortVError(f"{repo_id!r} is no repository id; give user/name: {one_line(error)}") from None
    try:
        info = retry(lambda: api.model_info(repo_id), repo_id, passing=(RepositoryNotFoundError,))
    except GatedRepoError:
        raise ShortVError(f"{repo_id} is gated, and the token has no access; ask for it on its Hub page.") from None
    except RepositoryNotFoundError:
        _check_creation(account, repo_id, target)
        return Repository(api, user, repo_id, target, False, target.private, None, {}, {}, {})
    repo_id = info.id  # another one if the repository was renamed, or is spelled in other letters
    check_visibility(info, target)
    check_permissions(account, repo_id, exists=True, create_pr=target.create_pr)
    if not target.create_pr:
        retry(lambda: api.auth_check(repo_id, write=True), repo_id, NO_WRITING)
    branches, tags = list_references(api, repo_id)
    head = branches.get(target.branch or "main", branches.get("main", str(info.sha)))
    files = list_files(api, repo_id, head)
    if RECIPE_NAME not in files and set(files) - {GIT_ATTRIBUTES} and not target.overwrite:
        raise ShortVError(
            f"{repo_id} exists and was not published by shortv-export (it has no {RECIPE_NAME}); "
            "choose another name, or replace what is there with `overwrite`."
        )
    if target.tag in branches:
        raise ShortVError(f"{repo_id} has a branch {target.tag}; choose another `tag`.")
    return Repository(api, user, repo_id, target, True, bool(info.private), head, files, tags, branches)


def _check_target(target: Target) -> None:
    """Refuses invalid names of tags."""
    if (tag := target.tag) is None:
        return
    if not _TAG.fullmatch(tag) or ".." in tag or tag.endswith((".", ".lock")):
        raise ShortVError(f"{tag!r:.99} is no tag; use letters, digits and . _ + -, such as v1.0.")


def _check_creation(account: Mapping[str, Any], repo_id: str, target: Target) -> None:
    """Refuses to create a repository where the user may not."""
    namespace = repo_id.split("/")[0]
    roles = {organisation["name"]: organisation.get("roleInOrg") for organisation in account.get("orgs", ())}
    if namespace not in (account["name"], *roles):
        raise ShortVError(
            f"{repo_id} does not exist, and {namespace} is neither you nor your organisation; "
            f"push to {account['name']}/{repo_id.split('/')[1]} instead."
        )
    if roles.get(namespace) == "read":
        raise ShortVError(f"{repo_id} does not exist, and you may only read in {namespace}; ask to become a writer.")
    if target.create_pr:
        raise ShortVError(f"{repo_id} does not exist; push without `create_pr` to make it.")
    check_permissions(account, repo_id, exists=False, create_pr=False)


def check_visibility(info: ModelInfo, target: Target) -> None:
    """Refuses to publish to a public repository what shall be private."""
    if target.private and not info.private:
        raise ShortVError(f"{info.id} exists and is public; make it private in its settings or leave out `private`.")


def list_references(api: HfApi, repo_id: str) -> tuple[dict[str, str], dict[str, str]]:
    """The commits of all branches and of all tags, by name."""
    references = retry(lambda: api.list_repo_refs(repo_id), repo_id)
    branches, tags = ({ref.name: ref.target_commit for ref in refs} for refs in (references.branches, references.tags))
    return branches, tags


def list_files(api: HfApi, repo_id: str, revision: str, kind: str = "model") -> dict[str, RepoFile]:
    """All files at a revision, by path."""
    from huggingface_hub.hf_api import RepoFile

    entries = retry(
        lambda: list(api.list_repo_tree(repo_id, revision=revision, recursive=True, repo_type=kind)), repo_id
    )
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
