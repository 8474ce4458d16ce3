"""Plans a commit: the files to add, to copy and to delete."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ShortVError
from ..files import file_sha256
from ..hub import LocalFile, retry
from ..packaging import UNNAMED, Package, carried_files, expected_files
from ..records import CARD_NAME, RECIPE_NAME, Recipe
from .repository import GIT_ATTRIBUTES, Repository

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile


@dataclass(frozen=True)
class Plan:
    """One commit.

    Attributes:
        content: the package's files, by name.
        added, deleted: names of the files that the commit adds and deletes.
        copied: those of `added` that the Hub copies from the base's repository.
        recipe: the package's recipe.
        not_copied: why the Hub did not copy the weights, if it was asked to.
    """

    content: dict[str, LocalFile]
    added: tuple[str, ...]
    deleted: tuple[str, ...]
    copied: frozenset[str]
    recipe: Recipe
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

    def operations(self) -> list[Any]:
        """The commit's operations for huggingface_hub, which changes them: each try needs new ones.

        Raises:
            ShortVError: a file is not what the recipe says.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

        base = self.recipe.base
        operations: list[Any] = []
        for name in self.added:
            if name in self.copied:
                copy = CommitOperationCopy(
                    name, name, src_repo_id=base.repo_id, src_repo_type="model", src_revision=base.revision
                )
                operations.append(copy)
                continue
            content = self.content[name].source
            addition = CommitOperationAdd(name, content)
            if isinstance(content, Path):  # otherwise huggingface_hub hashes the file for each try
                addition.upload_info.sha256 = bytes.fromhex(file_sha256(content, remembered=True))
            if addition.upload_info.sha256.hex() != self.content[name].sha256:
                raise ShortVError(f"{name} is damaged: its sha256 is not the recipe's; package the base again.")
            operations.append(addition)
        return operations + [CommitOperationDelete(name, is_folder=False) for name in self.deleted]


def plan_commit(package: Package, repository: Repository) -> Plan:
    """Plans a commit after which the repository holds the package, and no file that only an earlier package had.

    Raises:
        ShortVError: the repository's recipe cannot be read, and `overwrite` is not set.
    """
    content = _content(package, repository.repo_id)
    added = tuple(name for name, file in content.items() if not file.is_at(repository.files.get(name)))
    deleted = tuple(sorted(_outdated(repository) - content.keys()))
    base, carried = package.recipe.base, carried_files(package.recipe)
    at_base = files_of_base(repository.api, base.repo_id, base.revision, [name for name in added if name in carried])
    copied = {name for name, file in at_base.items() if can_be_copied(file) and content[name].is_at(file)}
    return Plan(content, added, deleted, frozenset(copied), package.recipe)


def _content(package: Package, repo_id: str) -> dict[str, LocalFile]:
    """The files to publish, by name. The card gets the name of its repository."""
    content, carried = {}, carried_files(package.recipe)
    for name in sorted(expected_files(package.recipe)):
        path = package.folder / name
        if entry := carried.get(name):
            content[name] = LocalFile(path, entry["size"], entry["sha256"])
            continue
        data = path.read_bytes()
        if name == CARD_NAME:
            data = data.replace(UNNAMED.encode(), repo_id.encode())
        content[name] = LocalFile(data, len(data), hashlib.sha256(data).hexdigest())
    return content


def _outdated(repository: Repository) -> Iterable[str]:
    """The files to replace: those of the last package, or with `overwrite` all of a foreign repository."""
    overwrite = repository.target.overwrite
    everything = set(repository.files) - {GIT_ATTRIBUTES}
    if RECIPE_NAME not in repository.files:
        return everything if overwrite else set()
    path = retry(
        lambda: repository.api.hf_hub_download(repository.repo_id, RECIPE_NAME, revision=repository.head),
        f"{repository.repo_id}'s {RECIPE_NAME}",
    )
    try:
        return expected_files(Recipe.load(Path(path))) & repository.files.keys()
    except ShortVError:
        if overwrite:
            return everything
        raise ShortVError(
            f"{repository.repo_id} has a {RECIPE_NAME} that this release cannot read; "
            "replace everything in it with `overwrite`."
        ) from None


def files_of_base(api: HfApi, repo_id: str | None, revision: str | None, names: Sequence[str]) -> dict[str, RepoFile]:
    """Those of the files that the base's repository has; none if the Hub cannot be asked."""
    from huggingface_hub.errors import HFValidationError, HTTPError
    from huggingface_hub.hf_api import RepoFile

    if not names or not repo_id or not revision:
        return {}
    try:
        infos = api.get_paths_info(repo_id, list(names), revision=revision)
    except (HTTPError, HFValidationError):  # gone, gated or unreachable: upload instead
        return {}
    return {info.path: info for info in infos if isinstance(info, RepoFile)}


def can_be_copied(file: RepoFile) -> bool:
    """Whether the Hub can copy a file to another repository, which takes its Xet hash."""
    return bool(file.lfs and file.xet_hash)
