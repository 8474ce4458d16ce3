"""A package goes to the Hub: in one commit, on top of exactly the state that was seen, compared afterwards.

Weights that the base's repository holds are copied there by the Hub itself; the rest is uploaded. The tag of
a push is named after the recipe's hash, so that the card can say which revision to load.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .access import check_permissions, check_role
from .base_model import BaseModel
from .card import CARD_NAME, FIGURE_NAME, UNNAMED
from .errors import ShortVError, one_line
from .eval_results import EVALUATION_NAME
from .hashing import file_sha256
from .package import CONFIG_NAME, WEIGHT_FILES, carried_files, expected_files, inspect_package, recipe_tag
from .recipe import RECIPE_NAME, Recipe, Selection
from .xet import is_of_xet, xet_storage

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

_T = TypeVar("_T")

# Seconds between the tries of one request. The client itself retries uploads, but not these.
_DELAYS: tuple[float, ...] = (1, 2, 4, 8, 16)
_TRANSIENT = {408, 429, 500, 502, 503, 504}
_NO_WRITING = {403: "the token may not write to this repository"}
_CHUNK = 1 << 20
_TAG = re.compile(r"\w[\w.+-]*", re.ASCII)


@dataclass(frozen=True)
class Push:
    """What a push did, or, for a dry run, would do.

    Attributes:
        repo_id: with its namespace.
        url: of the repository, or of the pull request.
        commit: that holds the package; None for a dry run that would make one.
        tag: that pins it; for a pull request, the one it gets when it is pushed again after the merge.
        named_tag: the second tag that was asked for.
        changed: whether a commit is needed; a re-run finds nothing to do.
        added, deleted: names of the files in the commit.
        uploaded_bytes: size of the added files that this machine sends.
        copied_bytes: size of those that the Hub copies from the base's repository.
        not_copied: why it would not, where it was asked to; they were uploaded.
        dry_run: nothing was changed.
    """

    repo_id: str
    url: str
    commit: str | None
    tag: str
    named_tag: str | None
    changed: bool
    added: tuple[str, ...]
    deleted: tuple[str, ...]
    uploaded_bytes: int
    copied_bytes: int
    not_copied: str | None
    dry_run: bool

    @property
    def summary(self) -> str:
        """The push in one line."""
        if not self.changed:
            return f"{self.url} holds this package already, at {self._tags}: no commit"
        counts = f"{len(self.added)} files, {self.uploaded_bytes:,} bytes uploaded"
        if self.copied_bytes:
            counts += f", {self.copied_bytes:,} bytes copied on the Hub"
        if self.deleted:
            counts += f", {len(self.deleted)} files deleted"
        if self.not_copied:
            counts += f" (the Hub did not copy the weights: {self.not_copied})"
        if self.dry_run:
            return f"would push to {self.url} in one commit, tagged {self._tags}: {counts}"
        return f"pushed to {self.url} in one commit, {self.commit}, tagged {self._tags}: {counts}"

    @property
    def snippet(self) -> str:
        """The code that loads exactly this model."""
        return (
            "from transformers import AutoModel, AutoProcessor\n"
            "\n"
            f'model_id, revision = "{self.repo_id}", "{self.tag}"\n'
            "processor = AutoProcessor.from_pretrained(model_id, revision=revision, trust_remote_code=True)\n"
            "model = AutoModel.from_pretrained(model_id, revision=revision, trust_remote_code=True, "
            'dtype="auto", device_map="auto")'
        )

    @property
    def _tags(self) -> str:
        return f"{self.tag} and {self.named_tag}" if self.named_tag else self.tag


@dataclass(frozen=True)
class _Target:
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
    _check_tag_name(tag, create_pr)
    _look(repo_id, private=private, create_pr=create_pr, revision=revision, overwrite=overwrite, token=token)


def push_package(
    package: Path,
    repo_id: str,
    *,
    private: bool = False,
    create_pr: bool = False,
    revision: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    commit_message: str | None = None,
    tag: str | None = None,
    token: str | None = None,
) -> Push:
    """Publishes a package: one commit, then its tag. Nothing is committed if the repository holds it already.

    Interrupted at any point, the repository holds either its old state or the whole package; running it again
    completes it, without sending again what has arrived.

    Args:
        package: the folder. Its files are checked first; the hashes of weights when they are uploaded.
        repo_id: ``user/name``, or ``name`` for the token's user. Made if it does not exist.
        private: make it private; an existing public one is refused.
        create_pr: open a pull request instead. It is tagged by pushing again after the merge.
        revision: the branch; made from main if it does not exist.
        overwrite: replace what is in a repository that this tool did not publish.
        dry_run: only tell what would be done.
        commit_message: the default names the frozen layers.
        tag: a second tag beside the recipe's, with a name for people, such as ``"v1"``. Tags are never moved.
        token: the default is the one that is logged in.

    Raises:
        ShortVError: the package is damaged; the token, the repository or the network does not allow it;
            somebody else changed the repository meanwhile.
    """
    _check_tag_name(tag, create_pr)
    package = Path(package)
    for check in inspect_package(package, weights=False):
        if not check.passed:
            raise ShortVError(f"{package} is not a complete package: {check.detail}")
    recipe = Recipe.load(package / RECIPE_NAME)
    target = _look(repo_id, private=private, create_pr=create_pr, revision=revision, overwrite=overwrite, token=token)
    content = _content(package, recipe, target.repo_id)
    added = tuple(name for name, file in content.items() if not file.is_at(target.files.get(name)))
    plan = _Plan(
        content=content,
        added=added,
        deleted=tuple(sorted(_outdated(target, overwrite) - content.keys())),
        copied=_copyable(target.api, recipe, content, added),
        recipe=recipe,
        message=commit_message or f"ShortV: freeze visual tokens in {len(recipe.frozen_layers)} layers",
        create_pr=create_pr,
    )
    recipes_tag = recipe_tag(package)
    _check_tag(target, recipes_tag, content)
    if tag in target.heads:
        raise ShortVError(f"{target.repo_id} has a branch {tag}; choose another --tag.")
    if tag in target.tags and (plan.changed or target.tags[tag] != target.head):
        raise ShortVError(f"{target.repo_id} has a tag {tag} on another commit; choose another --tag.")

    commit, url = target.head, f"{target.api.endpoint}/{target.repo_id}"
    if not dry_run:
        if plan.changed:
            target = _prepare(target, private)
            commit, url, plan = _commit(target, plan)
            if different := plan.differences(_tree(target.api, target.repo_id, commit)):
                names = ", ".join(different)
                raise ShortVError(f"{target.repo_id} at {commit} differs from the package: {names}; push again.")
        for name in (recipes_tag, tag):
            if name and name not in target.tags and not create_pr:
                create_tag = partial(target.api.create_tag, target.repo_id, tag=name, revision=commit, exist_ok=True)
                _retry(create_tag, f"the tag {name}")
    return Push(
        repo_id=target.repo_id,
        url=url,
        commit=None if dry_run and plan.changed else commit,
        tag=recipes_tag,
        named_tag=tag,
        changed=plan.changed,
        added=plan.added,
        deleted=plan.deleted,
        uploaded_bytes=sum(content[name].size for name in plan.added if name not in plan.copied),
        copied_bytes=sum(content[name].size for name in plan.copied),
        not_copied=plan.not_copied,
        dry_run=dry_run,
    )


@dataclass(frozen=True)
class Forecast:
    """What a push of a base would do, as far as one can tell without its package.

    Attributes:
        repo_id: with its namespace.
        url: of the repository.
        exists: whether it is there yet.
        frozen_layers: None if they are to be measured first.
        copied: names of the base's files that the Hub copies from the base's repository.
        uploaded: names of those that this machine sends.
        made: names of the files that this tool writes; small, but of unknown size.
        copied_bytes, uploaded_bytes: size of `copied` and `uploaded`.
        dry_run: True.
    """

    repo_id: str
    url: str
    exists: bool
    frozen_layers: tuple[int, ...] | None
    copied: tuple[str, ...]
    uploaded: tuple[str, ...]
    made: tuple[str, ...]
    copied_bytes: int
    uploaded_bytes: int
    dry_run: bool = True

    @property
    def summary(self) -> str:
        """The forecast in one line."""
        if self.frozen_layers is None:
            layers = "after measuring which layers to freeze"
        else:
            layers = f"with layers {', '.join(map(str, self.frozen_layers))} frozen"
        return (
            f"would push to {self.url}{'' if self.exists else ', a new repository,'} in one commit, {layers}: "
            f"{len(self.copied)} files of the base copied on the Hub ({self.copied_bytes:,} bytes), "
            f"{len(self.uploaded)} uploaded ({self.uploaded_bytes:,} bytes), "
            f"and {len(self.made)} made here ({', '.join(self.made)})"
        )


def forecast_push(
    base: BaseModel,
    repo_id: str,
    *,
    selection: Selection | None = None,
    weights: str = "copy",
    evaluated: bool = False,
    private: bool = False,
    create_pr: bool = False,
    revision: str | None = None,
    overwrite: bool = False,
    tag: str | None = None,
    token: str | None = None,
) -> Forecast:
    """What `push_package` would do with a package of this base; changes nothing, and needs no weights here.

    Args:
        base: as `resolve_base` returns it, with or without weights.
        selection: which layers are frozen, if that is known yet.
        weights: ``"copy"``, or ``"reference"`` for a package without them.
        evaluated: whether the package is evaluated before it is pushed.
        repo_id, private, create_pr, revision, overwrite, tag, token: as in `push_package`.

    Raises:
        ShortVError: the push could not go through, as far as one can tell.
    """
    _check_tag_name(tag, create_pr)
    target = _look(repo_id, private=private, create_pr=create_pr, revision=revision, overwrite=overwrite, token=token)
    carried = [name for name in base.files if weights == "copy" or not name.endswith(WEIGHT_FILES)]
    remote = _files_of_base(target.api, base.repo_id, base.revision, carried)
    pending = [name for name in carried if name not in remote or not _same(remote[name], target.files.get(name))]
    copied = tuple(name for name in pending if name in remote and _can_be_copied(remote[name]))
    uploaded = tuple(name for name in pending if name not in copied)
    sizes = {name: file.size for name, file in remote.items()}
    if not base.repo_id:
        sizes = {name: (base.path / name).stat().st_size for name in carried}
    if missing := [name for name in carried if name not in sizes]:
        raise ShortVError(f"{base.name} could not be asked for the size of {missing[0]}; try again.")
    made = {*base.family.code, CONFIG_NAME, RECIPE_NAME, CARD_NAME}
    if selection is None or selection.method in ("lc", "cosine"):
        made.add(FIGURE_NAME)
    if evaluated:
        made.add(EVALUATION_NAME)
    return Forecast(
        repo_id=target.repo_id,
        url=f"{target.api.endpoint}/{target.repo_id}",
        exists=target.exists,
        frozen_layers=selection.frozen_layers if selection else None,
        copied=copied,
        uploaded=uploaded,
        made=tuple(sorted(made)),
        copied_bytes=sum(sizes[name] for name in copied),
        uploaded_bytes=sum(sizes[name] for name in uploaded),
    )


# What there is to send


@dataclass(frozen=True)
class LocalFile:
    """A file of a package as the Hub compares it.

    Attributes:
        source: the file, or its content where that is not what lies on disk.
        size: bytes.
        sha256: what the recipe says, for weights, which are not read for this.
    """

    source: Path | bytes
    size: int
    sha256: str

    def is_at(self, remote: RepoFile | None) -> bool:
        """Whether the repository's file is this one."""
        if remote is None or remote.size != self.size:
            return False
        if remote.lfs:
            return remote.lfs.sha256 == self.sha256
        return remote.blob_id == self._git_id()

    def _git_id(self) -> str:
        digest = hashlib.sha1(b"blob %d\0" % self.size)
        if isinstance(self.source, bytes):
            digest.update(self.source)
        else:
            with self.source.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
        return digest.hexdigest()


@dataclass(frozen=True)
class _Plan:
    """One commit.

    Attributes:
        content: the package, by name.
        added, deleted: what the commit does.
        copied: those of `added` that the Hub copies from the base's repository.
        not_copied: why the Hub would not copy them.
        recipe: of the package.
        message: of the commit.
        create_pr: as a pull request.
    """

    content: dict[str, LocalFile]
    added: tuple[str, ...]
    deleted: tuple[str, ...]
    copied: frozenset[str]
    recipe: Recipe
    message: str
    create_pr: bool
    not_copied: str | None = None

    @property
    def changed(self) -> bool:
        return bool(self.added or self.deleted)

    def differences(self, files: Mapping[str, RepoFile]) -> list[str]:
        """Names of the files in which a repository is not what the commit makes it."""
        changed = [name for name, file in self.content.items() if not file.is_at(files.get(name))]
        return changed + [name for name in self.deleted if name in files]

    def operations(self) -> list[Any]:
        """The commit as the client takes it; fresh ones for each try, as the client marks them on the way."""
        from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

        base = self.recipe.base
        operations: list[Any] = []
        for name in self.added:
            if name in self.copied:
                operations.append(
                    CommitOperationCopy(
                        name,
                        name,
                        src_repo_id=base.repo_id,
                        src_repo_type="model",
                        src_revision=base.revision,
                    )
                )
                continue
            source = self.content[name].source
            addition = CommitOperationAdd(name, source)
            if isinstance(source, Path):  # the client would read it again for each try
                addition.upload_info.sha256 = bytes.fromhex(file_sha256(source, remembered=True))
            if addition.upload_info.sha256.hex() != self.content[name].sha256:
                raise ShortVError(f"{name} is damaged: its sha256 is not the recipe's; package the base again.")
            operations.append(addition)
        return operations + [CommitOperationDelete(name, is_folder=False) for name in self.deleted]


def _content(package: Path, recipe: Recipe, repo_id: str) -> dict[str, LocalFile]:
    """The files to be published, by name. A card that does not know its repository's name yet is told it."""
    content, carried = {}, carried_files(recipe)
    for name in sorted(expected_files(recipe)):
        path = package / name
        if entry := carried.get(name):
            content[name] = LocalFile(path, entry["size"], entry["sha256"])
            continue
        data = path.read_bytes()
        if name == CARD_NAME:
            data = data.replace(UNNAMED.encode(), repo_id.encode())
        content[name] = LocalFile(data, len(data), hashlib.sha256(data).hexdigest())
    return content


def _copyable(api: HfApi, recipe: Recipe, content: Mapping[str, LocalFile], added: tuple[str, ...]) -> frozenset[str]:
    """Large files that the base's repository holds just so."""
    base, carried = recipe.base, carried_files(recipe)
    names = [name for name in added if name in carried]
    found = _files_of_base(api, base.repo_id, base.revision, names)
    return frozenset(name for name, file in found.items() if _can_be_copied(file) and content[name].is_at(file))


def _files_of_base(api: HfApi, repo_id: str | None, revision: str | None, names: Sequence[str]) -> dict[str, RepoFile]:
    """What the base's repository holds of these files; nothing if it has none or cannot be asked."""
    from huggingface_hub.errors import HFValidationError, HTTPError
    from huggingface_hub.hf_api import RepoFile

    if not names or not repo_id or not revision:
        return {}
    try:
        infos = api.get_paths_info(repo_id, list(names), revision=revision)
    except (HTTPError, HFValidationError):  # gone, gated or unreachable: upload instead
        return {}
    return {info.path: info for info in infos if isinstance(info, RepoFile)}


def _can_be_copied(file: RepoFile) -> bool:
    """Without a Xet hash the client cannot copy between repositories."""
    return bool(file.lfs and file.xet_hash)


def _same(one: RepoFile, other: RepoFile | None) -> bool:
    if other is None or one.size != other.size:
        return False
    return one.lfs.sha256 == other.lfs.sha256 if one.lfs and other.lfs else one.blob_id == other.blob_id


def _outdated(target: _Target, overwrite: bool) -> set[str]:
    """The files of what was published before: all of a foreign repository, or those of its last package."""
    if RECIPE_NAME not in target.files:
        return set(target.files) - {".gitattributes"} if overwrite else set()
    path = _retry(
        lambda: target.api.hf_hub_download(target.repo_id, RECIPE_NAME, revision=target.head),
        f"{target.repo_id}'s {RECIPE_NAME}",
    )
    try:
        return expected_files(Recipe.load(Path(path))) & target.files.keys()
    except (ShortVError, AttributeError, TypeError):
        if overwrite:
            return set(target.files) - {".gitattributes"}
        raise ShortVError(
            f"{target.repo_id} has a {RECIPE_NAME} that this release cannot read; "
            "pass --overwrite to replace everything in it."
        ) from None


def _check_tag(target: _Target, tag: str, content: Mapping[str, LocalFile]) -> None:
    """A tag of this name must hold the same model, as whoever pinned it expects. The card may be older."""
    if tag not in target.tags:
        return
    tagged = _tree(target.api, target.repo_id, tag)
    for name, file in content.items():
        if not name.endswith((".md", ".png")) and not file.is_at(tagged.get(name)):
            raise ShortVError(
                f"{target.repo_id} has a tag {tag} on another model ({name} differs); delete the tag first."
            )


def _check_tag_name(tag: str | None, create_pr: bool) -> None:
    if tag is None:
        return
    if create_pr:
        raise ShortVError("a pull request is not tagged; push again with --tag after the merge.")
    if not _TAG.fullmatch(tag) or ".." in tag or tag.endswith((".", ".lock")):
        raise ShortVError(f"{tag!r:.99} is no tag; use letters, digits and . _ + -, such as v1.0.")


# The repository before, ...


def _look(
    repo_id: str, *, private: bool, create_pr: bool, revision: str | None, overwrite: bool, token: str | None
) -> _Target:
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
    account = _retry(api.whoami, "the token", {401: "it is not valid; run `hf auth login` again"})
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
        info = _retry(lambda: api.model_info(repo_id), repo_id, passing=(RepositoryNotFoundError,))
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
        return _Target(api, user, repo_id, False, branch, branch != "main", None, {}, {}, {})
    if private and not info.private:
        raise ShortVError(
            f"{repo_id} exists and is public; make it private in its settings or push without --private."
        )
    check_permissions(account, repo_id, exists=True, create_pr=create_pr)
    if not create_pr:
        _retry(lambda: api.auth_check(repo_id, write=True), repo_id, _NO_WRITING)
    refs = _retry(lambda: api.list_repo_refs(repo_id), repo_id)
    heads = {ref.name: ref.target_commit for ref in refs.branches}
    head = heads.get(branch, heads.get("main", str(info.sha)))
    files = _tree(api, repo_id, head)
    if RECIPE_NAME not in files and set(files) - {".gitattributes"} and not overwrite:
        raise ShortVError(
            f"{repo_id} exists and was not published by shortv-export (it has no {RECIPE_NAME}); "
            "choose another name, or pass --overwrite to replace what is there."
        )
    tags = {ref.name: ref.target_commit for ref in refs.tags}
    return _Target(api, user, repo_id, True, branch, branch not in heads, head, files, tags, heads)


def _tree(api: HfApi, repo_id: str, revision: str) -> dict[str, RepoFile]:
    """All files at a revision, by path."""
    from huggingface_hub.hf_api import RepoFile

    entries = _retry(lambda: list(api.list_repo_tree(repo_id, revision=revision, recursive=True)), repo_id)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


# ... during ...


def _prepare(target: _Target, private: bool) -> _Target:
    """Makes the repository and the branch if they are missing."""
    api, repo_id = target.api, target.repo_id
    if not target.exists:
        _retry(
            lambda: api.create_repo(repo_id, private=private or None, exist_ok=True),
            repo_id,
            {403: "the token may not create it"},
        )
    if target.new_branch:
        _retry(
            lambda: api.create_branch(repo_id, branch=target.branch, revision=target.head, exist_ok=True),
            repo_id,
        )
    if not target.exists:
        target = replace(target, exists=True, head=_head(target))
        if set(_tree(api, repo_id, str(target.head))) - {".gitattributes"}:
            raise ShortVError(f"somebody else made {repo_id} during this push; look at it, then push again.")
    return target


def _head(target: _Target) -> str:
    info = _retry(lambda: target.api.model_info(target.repo_id, revision=target.branch), target.repo_id)
    return str(info.sha)


def _commit(target: _Target, plan: _Plan) -> tuple[str, str, _Plan]:
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
    delays = list(_DELAYS)
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
            moved, transient = _status(error) == 412, _is_transient(error)
            if xet and is_of_xet(error):
                xet = False  # it has tried again and again itself, for minutes
            elif not moved and not transient:
                if not plan.copied:
                    raise _explain(error, repo_id, _NO_WRITING) from error
                plan = replace(plan, copied=frozenset(), not_copied=one_line(error))
                continue
            if plan.create_pr:
                if found := _find_pull_request(target, plan):
                    return *found, plan
            elif (head := _head(target)) != target.head:
                if not plan.differences(_tree(target.api, repo_id, head)):
                    return head, url, plan
                raise ShortVError(
                    f"{repo_id} was changed during this push; nothing was overwritten. Push again."
                ) from None
            if moved or not delays:
                raise _explain(error, repo_id) from error
            time.sleep(_wait(error, delays.pop(0)))


def _find_pull_request(target: _Target, plan: _Plan) -> tuple[str, str] | None:
    """An open pull request of this user that holds the package: an earlier run's, or one not heard of."""
    api, repo_id = target.api, target.repo_id

    def find() -> tuple[str, str] | None:
        for discussion in api.get_repo_discussions(
            repo_id, author=target.user, discussion_type="pull_request", discussion_status="open"
        ):
            reference = discussion.git_reference
            if discussion.title != plan.message or not reference:
                continue
            if not plan.differences(_tree(api, repo_id, reference)):
                return str(api.model_info(repo_id, revision=reference).sha), discussion.url
        return None

    return _retry(find, repo_id)


# The network


def _retry(
    action: Callable[[], _T],
    what: str,
    reasons: Mapping[int, str] | None = None,
    passing: tuple[type[Exception], ...] = (),
) -> _T:
    """Runs an idempotent request until it gets an answer.

    Args:
        action: the request.
        what: it is about, for messages.
        reasons: what a refusal's status means here.
        passing: exceptions that the caller handles.

    Raises:
        ShortVError: it is refused, or fails again and again.
    """
    for delay in (*_DELAYS, None):
        try:
            return action()
        except Exception as error:  # told apart by what can be done about it
            if isinstance(error, (ShortVError, *passing)):
                raise
            if delay is None or not _is_transient(error):
                raise _explain(error, what, reasons) from error
            time.sleep(_wait(error, delay))
    raise AssertionError("the last try returns or raises")


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _is_transient(error: BaseException | None) -> bool:
    """Whether trying again may help. The client wraps a failed upload, whose reason is the cause."""
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    while error is not None:
        if (status := _status(error)) is not None:
            return status in _TRANSIENT
        if isinstance(error, HTTPError | ConnectionError | TimeoutError):
            return not isinstance(error, OfflineModeIsEnabled)
        error = error.__cause__
    return False


def _wait(error: BaseException, delay: float) -> float:
    """The delay, or what the server asks for, within a minute."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    asked = headers.get("Retry-After", "")
    return min(float(asked), 60.0) if asked.isdigit() else delay


def _explain(error: Exception, what: str, reasons: Mapping[int, str] | None = None) -> ShortVError:
    """An exception of the client as one line."""
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    if isinstance(error, ShortVError):
        return error
    if isinstance(error, OfflineModeIsEnabled):
        return ShortVError("publishing needs the network, and HF_HUB_OFFLINE is set; unset it.")
    if isinstance(error, HTTPError | OSError | ValueError | RuntimeError):
        reason = (reasons or {}).get(_status(error) or 0) or one_line(error.__cause__ or error)
        return ShortVError(f"the Hub refused or could not be reached for {what}: {reason.rstrip('.')}.")
    raise error
