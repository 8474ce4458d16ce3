"""What one commit does: files to add, to copy and to delete."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ShortVError
from ..files import file_sha256
from ..hub import LocalFile, retry
from ..packaging import UNNAMED, carried_files, expected_files
from ..records import CARD_NAME, RECIPE_NAME, Recipe
from .target import TargetRepo

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile


@dataclass(frozen=True)
class CommitPlan:
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


def content_of(package: Path, recipe: Recipe, repo_id: str) -> dict[str, LocalFile]:
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


def copyable(api: HfApi, recipe: Recipe, content: Mapping[str, LocalFile], added: tuple[str, ...]) -> frozenset[str]:
    """Large files that the base's repository holds just so."""
    base, carried = recipe.base, carried_files(recipe)
    names = [name for name in added if name in carried]
    found = files_of_base(api, base.repo_id, base.revision, names)
    return frozenset(name for name, file in found.items() if can_be_copied(file) and content[name].is_at(file))


def files_of_base(api: HfApi, repo_id: str | None, revision: str | None, names: Sequence[str]) -> dict[str, RepoFile]:
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


def can_be_copied(file: RepoFile) -> bool:
    """Without a Xet hash the client cannot copy between repositories."""
    return bool(file.lfs and file.xet_hash)


def same_file(one: RepoFile, other: RepoFile | None) -> bool:
    if other is None or one.size != other.size:
        return False
    return one.lfs.sha256 == other.lfs.sha256 if one.lfs and other.lfs else one.blob_id == other.blob_id


def outdated(target: TargetRepo, overwrite: bool) -> set[str]:
    """The files of what was published before: all of a foreign repository, or those of its last package."""
    if RECIPE_NAME not in target.files:
        return set(target.files) - {".gitattributes"} if overwrite else set()
    path = retry(
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
