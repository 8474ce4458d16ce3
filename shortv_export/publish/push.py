"""A package is published: in one commit, on top of exactly the state that was seen, and compared afterwards.

The Hub itself copies the weights that the base's repository holds; the rest is uploaded. The tag is named after the
recipe's hash, so that the card can say which revision to load.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from ..errors import ShortVError
from ..hub import retry
from ..packaging import Package, require_intact
from .commit import make_commit, prepare
from .plan import plan_commit
from .repository import Repository, list_files


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


def push_package(package: Package, repository: Repository) -> Push:
    """Publishes a package: one commit, then its tag. Nothing is committed if the repository holds it already.

    Interrupted at any point, the repository holds either its old state or the whole package. Running it again
    completes it, without sending again what has arrived.

    Args:
        package: a folder. Its files are checked first; the hashes of weights when they are uploaded.
        repository: where to publish, and how, from `look_at`.

    Raises:
        ShortVError: the package is damaged; the token, the repository or the network does not allow it;
            somebody else changed the repository since it was looked at.
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
        if plan.changed:
            message = f"ShortV: freeze visual tokens in {len(package.recipe.frozen_layers)} layers"
            commit, url, plan = make_commit(prepare(repository), plan, target.commit_message or message)
            if different := plan.differences(list_files(repository.api, repository.repo_id, commit)):
                raise ShortVError(
                    f"{repository.repo_id} at {commit} differs from the package: {', '.join(different)}; push again."
                )
        for name in (recipe_tag, target.tag):
            if name and name not in repository.tags and not target.create_pr:
                create_tag = partial(repository.api.create_tag, repository.repo_id, tag=name, revision=commit)
                retry(partial(create_tag, exist_ok=True), f"the tag {name}")
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
