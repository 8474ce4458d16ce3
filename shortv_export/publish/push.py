"""A package goes to the Hub: in one commit, on top of exactly the state that was seen, compared afterwards.

Weights that the base's repository holds are copied there by the Hub itself; the rest is uploaded. The tag of
a push is named after the recipe's hash, so that the card can say which revision to load.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ShortVError
from ..hub import retry
from ..packaging import inspect_package, recipe_tag
from ..records import RECIPE_NAME, Recipe
from .commit import make_commit, prepare
from .plan import CommitPlan, content_of, copyable, outdated
from .target import check_tag, check_tag_name, list_files, look_at

if TYPE_CHECKING:
    pass


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
    check_tag_name(tag, create_pr)
    package = Path(package)
    for check in inspect_package(package, weights=False):
        if not check.passed:
            raise ShortVError(f"{package} is not a complete package: {check.detail}")
    recipe = Recipe.load(package / RECIPE_NAME)
    target = look_at(
        repo_id, private=private, create_pr=create_pr, revision=revision, overwrite=overwrite, token=token
    )
    content = content_of(package, recipe, target.repo_id)
    added = tuple(name for name, file in content.items() if not file.is_at(target.files.get(name)))
    plan = CommitPlan(
        content=content,
        added=added,
        deleted=tuple(sorted(outdated(target, overwrite) - content.keys())),
        copied=copyable(target.api, recipe, content, added),
        recipe=recipe,
        message=commit_message or f"ShortV: freeze visual tokens in {len(recipe.frozen_layers)} layers",
        create_pr=create_pr,
    )
    recipes_tag = recipe_tag(package)
    check_tag(target, recipes_tag, content)
    if tag in target.heads:
        raise ShortVError(f"{target.repo_id} has a branch {tag}; choose another --tag.")
    if tag in target.tags and (plan.changed or target.tags[tag] != target.head):
        raise ShortVError(f"{target.repo_id} has a tag {tag} on another commit; choose another --tag.")

    commit, url = target.head, f"{target.api.endpoint}/{target.repo_id}"
    if not dry_run:
        if plan.changed:
            target = prepare(target, private)
            commit, url, plan = make_commit(target, plan)
            if different := plan.differences(list_files(target.api, target.repo_id, commit)):
                names = ", ".join(different)
                raise ShortVError(f"{target.repo_id} at {commit} differs from the package: {names}; push again.")
        for name in (recipes_tag, tag):
            if name and name not in target.tags and not create_pr:
                create_tag = partial(target.api.create_tag, target.repo_id, tag=name, revision=commit, exist_ok=True)
                retry(create_tag, f"the tag {name}")
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
