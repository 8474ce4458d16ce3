"""Publishes a package in one commit on top of exactly the state that was seen, and compares the result.

The Hub copies the weights that the base's repository has; the rest is uploaded. The tag is named after the recipe's
hash, so that the card can say which revision to load.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..base import BaseModel
from ..errors import ShortVError
from ..files import scratch_folder
from ..packaging import Package, inspect_package
from ..records import CARD_NAME
from .card import check_metadata
from .commit import Commit, make_commit, prepare
from .ignored import check_ignored
from .outcome import complete
from .plan import Plan, file_rows, plan_commit
from .repository import Repository, describe, describe_space
from .space import Space, push_space


@dataclass(frozen=True)
class Push:
    """What a push did, or would do without `dry_run`.

    Attributes:
        repo_id: with its namespace.
        url: of the repository, or of the pull request.
        commit: holds the package; None for a dry run that would make one.
        tag: pins the package; None for a pull request, until the package is pushed again after the merge.
        named_tag: the second tag, as asked for with `tag`.
        changed: whether a commit is needed; False if the repository holds the package already.
        added, deleted, uploaded_bytes, copied_bytes, replaces, not_copied: as in `plan.Plan`.
        copied: those of `added` that the Hub copies from the base's repository.
        sizes: bytes of each of `added`.
        exists, private: whether the repository was there before, and whether it is private.
        dry_run: whether nothing was changed.
        space: URL of the Space, if one was asked for.
    """

    repo_id: str
    url: str
    commit: str | None
    tag: str | None
    named_tag: str | None
    changed: bool
    added: tuple[str, ...]
    deleted: tuple[str, ...]
    uploaded_bytes: int
    copied_bytes: int
    not_copied: str | None
    dry_run: bool
    copied: tuple[str, ...]
    sizes: dict[str, int]
    replaces: str | None
    exists: bool
    private: bool
    space: str | None = None

    @property
    def summary(self) -> str:
        """The push in one line."""
        page = describe_space(self)
        if not self.changed:
            return f"{self.url} holds this package already, at {self._tags or self.commit}: no commit{page}"
        counts = f"{len(self.added)} files, {self.uploaded_bytes:,} bytes uploaded"
        if self.copied_bytes:
            counts += f", {self.copied_bytes:,} bytes copied on the Hub"
        if self.deleted:
            counts += f", {len(self.deleted)} files deleted"
        if self.not_copied:
            counts += f" (the Hub did not copy the weights: {self.not_copied})"
        if self.replaces:
            counts += f"; this replaces the model that is there: {self.replaces}"
        if self.dry_run:
            tagged = f", tagged {self._tags}" if self._tags else ", without a tag"
            return f"would push to {describe(self)} in one commit{tagged}: {counts}{page}"
        if self.tag is None:
            return (
                f"proposed in {self.url}, one commit, {self.commit}: {counts}; once merged, push again to set the tag"
            )
        return f"pushed to {self.url} in one commit, {self.commit}, tagged {self._tags}: {counts}{page}"

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """What happens to each file: what, its name, its size."""
        uploaded = [name for name in self.added if name not in self.copied]
        return file_rows({"copied on the Hub": self.copied, "uploaded": uploaded, "deleted": self.deleted}, self.sizes)

    @property
    def snippet(self) -> str:
        """Python code that loads exactly this model; of a pull request, at the commit that it proposes."""
        return (
            "from transformers import AutoModel, AutoProcessor\n"
            "\n"
            f'model_id, revision = "{self.repo_id}", "{self.tag or self.commit}"\n'
            "processor = AutoProcessor.from_pretrained(model_id, revision=revision, trust_remote_code=True)\n"
            "model = AutoModel.from_pretrained(model_id, revision=revision, trust_remote_code=True, "
            'dtype="auto", device_map="auto")'
        )

    @property
    def _tags(self) -> str:
        return " and ".join(filter(None, (self.tag, self.named_tag)))


def push_package(
    package: Package, repository: Repository, *, base: BaseModel | None = None, space: Space | None = None
) -> Push:
    """Publishes a package: one commit, its tags and its Space. Commits nothing where the Hub holds it already.

    Interrupted at any point, it leaves the repository's old state or the whole package. Pushing again completes the
    push, without uploading again what has arrived.

    Args:
        package: a folder. It is compared first with what its recipe and its base make; weights are hashed only when
            they are uploaded. What was compared is what is sent.
        repository: where and how to publish, from `inspect_repository`.
        base: what the package was made of; None looks it up.
        space: from `inspect_space`; None publishes none.

    Raises:
        ShortVError: the package is damaged; the token, the repository or the network does not allow the push; or
            somebody else changed the repository since `inspect_repository`. If there is a commit, the error says so,
            and what is missing.
    """
    with scratch_folder("shortv-push") as temporary:
        inspection = inspect_package(package, temporary / "package", base=base, weights=False)
        failed = inspection.failed
        if failed and (failed.name != "card" or repository.target.card is None):
            advice = " Publish it as it is with `card` package." if failed.name == "card" else ""
            raise ShortVError(f"{package.name} is not a complete package: {failed.name}: {failed.detail}{advice}")
        push = _push(inspection.package, repository)
        if space is None:
            return push
        return replace(push, space=space.url if push.dry_run else push_space(space, inspection.package))


def _push(package: Package, repository: Repository) -> Push:
    """Publishes a copy that nobody else writes to."""
    target, recipe_tag = repository.target, package.tag
    tags = (recipe_tag, target.tag) if target.tag else (recipe_tag,)
    plan = plan_commit(package, repository)
    _check_plan(plan, repository, tags)
    commit = Commit(str(repository.head), repository.url, repository.branch)
    if not target.dry_run:
        plan.require_undamaged()
        prepared = prepare(repository)
        if plan.changed:
            message = f"ShortV: freeze visual tokens ({package.recipe.frozen.describe(package.recipe.num_layers)})"
            commit, plan = make_commit(prepared, plan, target.commit_message or message)
        complete(repository, plan, commit, () if target.create_pr else tags)
    return Push(
        repo_id=repository.repo_id,
        url=commit.url,
        commit=None if target.dry_run and plan.changed else commit.sha,
        tag=None if target.create_pr and recipe_tag not in repository.tags else recipe_tag,
        named_tag=target.tag,
        changed=plan.changed,
        added=plan.added,
        deleted=plan.deleted,
        uploaded_bytes=plan.uploaded_bytes,
        copied_bytes=plan.copied_bytes,
        not_copied=plan.not_copied,
        dry_run=target.dry_run,
        copied=tuple(name for name in plan.added if name in plan.copied),
        sizes={name: plan.content[name].size for name in plan.added},
        replaces=plan.replaces if plan.changed else None,
        exists=repository.exists,
        private=repository.private,
    )


def _check_plan(plan: Plan, repository: Repository, tags: tuple[str, ...]) -> None:
    """Looks at what the Hub would do with a commit and its tags, before anything is created or sent."""
    recipe_tag, *named = tags
    repository.check_tag(recipe_tag, plan.content)
    for tag in named:
        if tag in repository.tags and (plan.changed or repository.tags[tag] != repository.head):
            raise ShortVError(f"{repository.repo_id} has a tag {tag} on another commit; choose another `tag`.")
    check_ignored(repository, plan.added)
    card = plan.content[CARD_NAME].source
    if CARD_NAME in plan.added and isinstance(card, bytes):
        check_metadata(card)
