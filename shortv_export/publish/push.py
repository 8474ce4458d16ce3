"""Publishes a package in one commit on top of exactly the state that was seen, and compares the result.

The Hub copies the weights that the base's repository has; the rest is uploaded. The tag is named after the recipe's
hash, so that the card can say which revision to load.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

from ..errors import ShortVError
from ..hub import retry
from ..packaging import Package, require_intact
from .commit import make_commit, prepare
from .plan import plan_commit
from .repository import Repository, list_files, list_references


@dataclass(frozen=True)
class Push:
    """What a push did, or would do without `dry_run`.

    Attributes:
        repo_id: with its namespace.
        url: of the repository, or of the pull request.
        commit: holds the package; None for a dry run that would make one.
        tag: pins the package; after a pull request it is missing until the package is pushed again after the merge.
        named_tag: the second tag, as asked for with `tag`.
        changed: whether a commit is needed; False if the repository holds the package already.
        added, deleted, uploaded_bytes, copied_bytes, not_copied: as in `plan.Plan`.
        dry_run: whether nothing was changed.
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
        """Python code that loads exactly this model."""
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


def push_package(package: Package, repository: Repository) -> Push:
    """Publishes a package: one commit, then its tags. Commits nothing if the repository holds the package already.

    Interrupted at any point, it leaves the repository's old state or the whole package. Pushing again completes the
    push, without uploading again what has arrived.

    Args:
        package: a folder. Its files are checked first, but weights are hashed only when they are uploaded.
        repository: where and how to publish, from `inspect_repository`.

    Raises:
        ShortVError: the package is damaged; the token, the repository or the network does not allow the push; or
            somebody else changed the repository since `inspect_repository`.
    """
    require_intact(package, "is not a complete package", weights=False)
    target, recipe_tag = repository.target, package.tag
    plan = plan_commit(package, repository)
    repository.check_tag(recipe_tag, plan.content)
    tagged = repository.tags.get(target.tag or "")
    if tagged and (plan.changed or tagged != repository.head):
        raise ShortVError(f"{repository.repo_id} has a tag {target.tag} on another commit; choose another `tag`.")

    commit, url = repository.head, repository.url
    if not target.dry_run:
        prepared = prepare(repository)
        if plan.changed:
            message = f"ShortV: freeze visual tokens in {len(package.recipe.frozen_layers)} layers"
            commit, url, plan = make_commit(prepared, plan, target.commit_message or message)
            if different := plan.differences(list_files(repository.api, repository.repo_id, commit)):
                raise ShortVError(
                    f"{repository.repo_id} at {commit} differs from the package: {', '.join(different)}; push again."
                )
        new_tags = [name for name in (recipe_tag, target.tag) if name and name not in repository.tags]
        if not target.create_pr:
            for name in new_tags:
                create_tag = partial(repository.api.create_tag, repository.repo_id, tag=name, revision=commit)
                retry(partial(create_tag, exist_ok=True), f"the tag {name}")
            _check_references(repository, str(commit), new_tags, committed=plan.changed)
    return Push(
        repo_id=repository.repo_id,
        url=url,
        commit=None if target.dry_run and plan.changed else commit,
        tag=recipe_tag,
        named_tag=target.tag,
        changed=plan.changed,
        added=plan.added,
        deleted=plan.deleted,
        uploaded_bytes=plan.uploaded_bytes,
        copied_bytes=plan.copied_bytes,
        not_copied=plan.not_copied,
        dry_run=target.dry_run,
    )


def _check_references(repository: Repository, commit: str, new_tags: Collection[str], *, committed: bool) -> None:
    """Refuses to call a push done if somebody else set one of its tags, or moved a branch that it left as it was."""
    repo_id, branch = repository.repo_id, repository.branch
    branches, tags = list_references(repository.api, repo_id)
    if not committed and branches.get(branch) != commit:
        raise ShortVError(f"{repo_id} was changed during this push, and {branch} has another model; push again.")
    for name in new_tags:
        if tags.get(name, commit) != commit:
            raise ShortVError(
                f"{repo_id} holds the package at {commit}, but somebody else set its tag {name} elsewhere; "
                "delete that tag, then push again."
            )
