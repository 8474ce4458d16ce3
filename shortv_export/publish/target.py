"""The repository to publish to, as it was found before anything is changed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ShortVError, one_line
from ..hub import LocalFile, retry
from ..records import RECIPE_NAME
from .permissions import check_permissions, check_role

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

NO_WRITING = {403: "the token may not write to this repository"}
_TAG = re.compile(r"\w[\w.+-]*", re.ASCII)


@dataclass(frozen=True)
class TargetRepo:
    """A repository as it was found.

    Attributes:
        api: a client with the token.
        user: whose token it is.
        repo_id: with its namespace.
        exists: whether it is there yet.
        branch: what to commit to.
        new_branch: `branch` has to be made.
        head: the commit to build on; None if the repository does not exist.
        files: the tree at `head`.
        tags, heads: of the repository: name to commit.
    """

    api: HfApi
    user: str
    repo_id: str
    exists: bool
    branch: str
    new_branch: bool
    head: str | None
    files: dict[str, RepoFile]
    tags: dict[str, str]
    heads: dict[str, str]


def preflight(
    repo_id: str,
    *,
    private: bool = False,
    create_pr: bool = False,
    revision: str | None = None,
    overwrite: bool = False,
    tag: str | None = None,
    token: str | None = None,
) -> None:
    """Whether a push could go through, as far as one can tell without a package; changes nothing.

    Args:
        repo_id, private, create_pr, revision, overwrite, tag, token: as in `push_package`.

    Raises:
        ShortVError: it could not, and why.
    """
    check_tag_name(tag, create_pr)
    look_at(repo_id, private=private, create_pr=create_pr, revision=revision, overwrite=overwrite, token=token)


def check_tag(target: TargetRepo, tag: str, content: Mapping[str, LocalFile]) -> None:
    """A tag of this name must hold the same model, as whoever pinned it expects. The card may be older."""
    if tag not in target.tags:
        return
    tagged = list_files(target.api, target.repo_id, tag)
    for name, file in content.items():
        if not name.endswith((".md", ".png")) and not file.is_at(tagged.get(name)):
            raise ShortVError(
                f"{target.repo_id} has a tag {tag} on another model ({name} differs); delete the tag first."
            )


def check_tag_name(tag: str | None, create_pr: bool) -> None:
    if tag is None:
        return
    if create_pr:
        raise ShortVError("a pull request is not tagged; push again with --tag after the merge.")
    if not _TAG.fullmatch(tag) or ".." in tag or tag.endswith((".", ".lock")):
        raise ShortVError(f"{tag!r:.99} is no tag; use letters, digits and . _ + -, such as v1.0.")


# The repository before, ...


def look_at(
    repo_id: str, *, private: bool, create_pr: bool, revision: str | None, overwrite: bool, token: str | None
) -> TargetRepo:
    """Everything that can be known before anything is changed; refuses what would fail or do harm."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id

    if create_pr and revision:
        raise ShortVError("a pull request is opened against main; leave out either --create-pr or --branch.")
    token = token or get_token()
    if not token:
        raise ShortVError("no token: run `hf auth login` or set HF_TOKEN.")
    api = HfApi(token=token)
    account = retry(api.whoami, "the token", {401: "it is not valid; run `hf auth login` again"})
    check_role(account)
    user = str(account["name"])
    if "/" not in repo_id:
        repo_id = f"{user}/{repo_id}"
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ShortVError(f"{repo_id!r} is no repository id: {one_line(error)}") from None

    branch = revision or "main"
    try:
        info = retry(lambda: api.model_info(repo_id), repo_id, passing=(RepositoryNotFoundError,))
    except GatedRepoError:
        raise ShortVError(f"{repo_id} is gated, and the token has no access to it.") from None
    except RepositoryNotFoundError:
        namespace = repo_id.split("/")[0]
        roles = {organisation["name"]: organisation.get("roleInOrg") for organisation in account.get("orgs", ())}
        if namespace not in (user, *roles):
            raise ShortVError(
                f"{repo_id} does not exist, and {namespace} is neither you nor your organisation."
            ) from None
        if roles.get(namespace) == "read":
            raise ShortVError(f"{repo_id} does not exist, and you may only read in {namespace}.") from None
        if create_pr:
            raise ShortVError(f"{repo_id} does not exist; push without --create-pr to make it.") from None
        check_permissions(account, repo_id, exists=False, create_pr=False)
        return TargetRepo(api, user, repo_id, False, branch, branch != "main", None, {}, {}, {})
    if private and not info.private:
        raise ShortVError(
            f"{repo_id} exists and is public; make it private in its settings or push without --private."
        )
    check_permissions(account, repo_id, exists=True, create_pr=create_pr)
    if not create_pr:
        retry(lambda: api.auth_check(repo_id, write=True), repo_id, NO_WRITING)
    refs = retry(lambda: api.list_repo_refs(repo_id), repo_id)
    heads = {ref.name: ref.target_commit for ref in refs.branches}
    head = heads.get(branch, heads.get("main", str(info.sha)))
    files = list_files(api, repo_id, head)
    if RECIPE_NAME not in files and set(files) - {".gitattributes"} and not overwrite:
        raise ShortVError(
            f"{repo_id} exists and was not published by shortv-export (it has no {RECIPE_NAME}); "
            "choose another name, or pass --overwrite to replace what is there."
        )
    tags = {ref.name: ref.target_commit for ref in refs.tags}
    return TargetRepo(api, user, repo_id, True, branch, branch not in heads, head, files, tags, heads)


def list_files(api: HfApi, repo_id: str, revision: str) -> dict[str, RepoFile]:
    """All files at a revision, by path."""
    from huggingface_hub.hf_api import RepoFile

    entries = retry(lambda: list(api.list_repo_tree(repo_id, revision=revision, recursive=True)), repo_id)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
