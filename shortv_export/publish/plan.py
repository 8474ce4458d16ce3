"""Plans a commit: the files to add, to copy and to delete."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ShortVError
from ..files import file_sha256, open_regular
from ..hub import LocalFile, retry
from ..packaging import Package, carried_files, expected_files
from ..records import RECIPE_NAME, WEIGHT_FILES, Recipe
from .content import read_content
from .repository import GIT_ATTRIBUTES, Repository

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile


@dataclass(frozen=True)
class Plan:
    """One commit.

    Attributes:
        folder: of the package.
        content: the package's files, by name.
        added, deleted: names of the files that the commit adds and deletes.
        copied: those of `added` that the Hub copies from the base's repository.
        recipe: the package's recipe.
        replaces: the model that the repository has, in words, if it is another one.
        not_copied: why the Hub did not copy the weights, if it was asked to.
    """

    folder: Path
    content: dict[str, LocalFile]
    added: tuple[str, ...]
    deleted: tuple[str, ...]
    copied: frozenset[str]
    recipe: Recipe
    replaces: str | None = None
    not_copied: str | None = None

    @property
    def changed(self) -> bool:
        """Whether there is anything to commit."""
        return bool(self.added or self.deleted)

    @property
    def uploaded_bytes(self) -> int:
        """Size of the added files that this machine uploads."""
        return sum(self.content[name].size for name in self.added if name not in self.copied)

    @property
    def copied_bytes(self) -> int:
        """Size of the added files that the Hub copies."""
        return sum(self.content[name].size for name in self.copied)

    def differences(self, files: Mapping[str, RepoFile]) -> list[str]:
        """Names of the files in which a repository differs from the result of the commit."""
        changed = [name for name, file in self.content.items() if not file.is_at(files.get(name))]
        return changed + [name for name in self.deleted if name in files]

    def require_undamaged(self) -> None:
        """Hashes the weights to upload, unless their hash is known from before: damage shows before the upload.

        Raises:
            ShortVError: a file is not what the recipe says.
        """
        for name in self.added:
            path, size = self.content[name].source, self.content[name].size
            if name in self.copied or isinstance(path, bytes):
                continue
            open_regular(path, most=size).close()  # to hash a larger one could take for ever
            if file_sha256(path, remembered=True) != self.content[name].sha256:
                raise ShortVError(f"{name} is damaged: its sha256 is not the recipe's; package the base again.")

    def operations(self) -> list[Any]:
        """The commit's operations for huggingface_hub, which changes them: each try needs new ones."""
        from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

        base = self.recipe.base
        operations: list[Any] = []
        for name in self.added:
            if name in self.copied:
                copy = CommitOperationCopy(
                    name, name, src_repo_id=base.repo_id, src_repo_type="model", src_revision=base.revision
                )
                operations.append(copy)
            else:
                operations.append(CommitOperationAdd(name, self.content[name].source))
        return operations + [CommitOperationDelete(name, is_folder=False) for name in self.deleted]


def plan_commit(package: Package, repository: Repository) -> Plan:
    """Plans a commit after which the repository holds the package, and no file that only an earlier package had.

    Raises:
        ShortVError: a file is not the package's (see `read_content`); the repository is the base's own; its recipe
            cannot be read, and `overwrite` is not set.
    """
    content = read_content(package, repository)
    base, carried = package.recipe.base, carried_files(package.recipe)
    repository.check_base(base.repo_id)
    weights = any(name.endswith(WEIGHT_FILES) for name in carried)
    if weights and not repository.is_ours and all(content[name].is_at(repository.files.get(name)) for name in carried):
        raise ShortVError(f"{repository.repo_id} holds the base itself; publish under another name.")
    added = tuple(name for name, file in content.items() if not file.is_at(repository.files.get(name)))
    there = published_recipe(repository)
    deleted = tuple(sorted(outdated_files(repository, there) - content.keys()))
    same = there is not None and (there.base.files, there.frozen) == (base.files, package.recipe.frozen)
    at_base = files_of_base(repository.api, base.repo_id, base.revision, [name for name in added if name in carried])
    copied = {name for name, file in at_base.items() if can_be_copied(file) and content[name].is_at(file)}
    replaces = None if same else replaced_model(repository, there)
    return Plan(package.folder, content, added, deleted, frozenset(copied), package.recipe, replaces)


def published_recipe(repository: Repository) -> Recipe | None:
    """The recipe of the package that a repository holds; None if it holds none.

    Raises:
        ShortVError: it cannot be read, and `overwrite` is not set.
    """
    if not repository.is_ours:
        return None
    path = retry(
        lambda: repository.api.hf_hub_download(repository.repo_id, RECIPE_NAME, revision=repository.head),
        f"{repository.repo_id}'s {RECIPE_NAME}",
    )
    try:
        return Recipe.load(Path(path))
    except ShortVError:
        if repository.target.overwrite:
            return None
        raise ShortVError(
            f"{repository.repo_id} has a {RECIPE_NAME} that this release cannot read; "
            "replace everything in it with `overwrite`."
        ) from None


def outdated_files(repository: Repository, there: Recipe | None) -> Set[str]:
    """The files to replace: those of the package that is there, or with `overwrite` all that a repository holds."""
    if there is not None:
        return expected_files(there) & repository.files.keys()
    return repository.files.keys() - {GIT_ATTRIBUTES} if repository.target.overwrite else set()


def replaced_model(repository: Repository, there: Recipe | None) -> str | None:
    """What a push replaces, in words, if it is not the same model; None if there is nothing."""
    if there is not None:
        base = there.base.repo_id or "a local base"
        return f"{base} with {there.frozen.describe(there.num_layers)}"
    return "one that this tool did not publish" if outdated_files(repository, None) else None


def file_rows(files: Mapping[str, Iterable[str]], sizes: Mapping[str, int]) -> list[tuple[str, ...]]:
    """What happens to each file, its name and, where it is known, its size.

    Args:
        files: what happens -> names.
        sizes: name -> bytes.
    """
    return [
        (what, name, f"{sizes[name]:,} bytes" if name in sizes else "")
        for what, names in files.items()
        for name in names
    ]


def files_of_base(api: HfApi, repo_id: str | None, revision: str | None, names: Sequence[str]) -> dict[str, RepoFile]:
    """Those of the files that the base's repository has; none if the Hub cannot be asked."""
    from huggingface_hub.errors import HTTPError
    from huggingface_hub.hf_api import RepoFile

    if not names or not repo_id or not revision:
        return {}
    try:
        infos = api.get_paths_info(repo_id, list(names), revision=revision)
    except (HTTPError, OSError, ValueError):  # gone, gated, unreachable, or not the Hub's answer: upload instead
        return {}
    return {info.path: info for info in infos if isinstance(info, RepoFile)}


def can_be_copied(file: RepoFile) -> bool:
    """Whether the Hub can copy a file to another repository, which takes its Xet hash."""
    return bool(file.lfs and file.xet_hash)
