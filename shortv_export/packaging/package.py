"""`Package`: a finished package, in a folder or in a repository at a commit."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..base import FAMILIES, BaseModel, Family
from ..errors import ShortVError
from ..files import MAX_JSON_BYTES, read_json, read_regular, recover
from ..hub import download_files, hub_error
from ..records import (
    CONFIG_NAME,
    EVALUATION_NAME,
    FOREIGN_FILES,
    RECIPE_NAME,
    RESULTS_FOLDER,
    TEMPLATES_FOLDER,
    Evaluation,
    Recipe,
    Scores,
)
from .contents import expected_files
from .derived import base_text, derived_text


@dataclass(frozen=True)
class Package:
    """A finished package whose files are on this machine. None of them has been checked or run.

    Attributes:
        name: as the user wrote it.
        folder: of its files: the package's own, or a snapshot in the Hub's cache.
        commit: of a repository; None for a folder.
        files: the names of all files in the folder or repository, also of those that are not the package's.
    """

    name: str
    folder: Path
    commit: str | None
    files: frozenset[str]

    @classmethod
    def open(cls, name: str | Path, *, revision: str | None = None) -> Package:
        """Opens a folder; or downloads a repository's package, at a branch, tag or commit, and opens it.

        Raises:
            ShortVError: there is no such package, or it cannot be downloaded.
        """
        folder = Path(name)
        recover(folder.absolute(), FOREIGN_FILES)
        if not folder.is_dir():
            return _download(str(name), revision)
        if revision is not None:
            raise ShortVError(f"{name} is a folder, which has no revisions; leave out `revision`.")
        return cls(str(name), folder.absolute(), None, _listing(folder))

    @staticmethod
    def is_at(name: str | Path) -> bool:
        """Whether `name` is a folder with a package."""
        recover(Path(name).absolute(), FOREIGN_FILES)
        return (Path(name) / RECIPE_NAME).is_file()

    @cached_property
    def recipe(self) -> Recipe:
        """Its ``shortv.json``.

        Raises:
            ShortVError: it is missing or damaged.
        """
        return Recipe.load(self.folder / RECIPE_NAME)

    @cached_property
    def scores(self) -> Scores | None:
        """The scores that its layers were selected by, if any."""
        scores = self.recipe.scores
        return None if scores is None else Scores.from_dict(scores, RECIPE_NAME)

    @cached_property
    def evaluation(self) -> Evaluation | None:
        """Its ``evaluation.json``, if it was evaluated."""
        return Evaluation.load(self.folder / EVALUATION_NAME) if self.recipe.measured else None

    @property
    def family(self) -> Family:
        """The family of its base."""
        return FAMILIES[self.recipe.family]

    @property
    def tag(self) -> str:
        """Its tag on the Hub."""
        return self.recipe.tag

    @property
    def base(self) -> BaseModel:
        """Its base, as far as the package's own files describe it."""
        base, config = self.recipe.base, self.base_config
        files = tuple(sorted(base.files))
        return BaseModel(self.name, base.repo_id, base.revision, self.folder, config, self.family, files)

    @property
    def base_config(self) -> dict[str, Any]:
        """The base's ``config.json``, restored from the package's."""
        config = read_json(self.folder / CONFIG_NAME)
        added = ("auto_map", "frozen_layers", "frozen_attention", "frozen_ffn", "shortv_base")
        kept = {name: value for name, value in config.items() if name not in added}
        return {**kept, "model_type": self.family.model_type, "architectures": [self.family.base_class]}

    @cached_property
    def restored_files(self) -> dict[str, bytes]:
        """The base's own content of files in which this package names classes (see `Recipe.derived`).

        Raises:
            ShortVError: a file differs from the base's in more than that.
        """
        restored = {}
        for name, changes in self.recipe.derived.items():
            content = read_regular(self.folder / name, folder=self.folder, most=MAX_JSON_BYTES)
            text, entry = content.decode("utf-8", "replace"), self.recipe.base.files.get(name)
            if entry is None:
                if text != derived_text(None, changes, name):
                    raise ShortVError(f"{name}, which its base does not have, holds more than the recipe says.")
                continue
            restored[name] = base_text(text, changes, name).encode()
            if hashlib.sha256(restored[name]).hexdigest() != entry["sha256"]:
                raise ShortVError(f"{name} differs from the base's in more than the classes that the recipe names.")
        return restored


def _listing(folder: Path) -> frozenset[str]:
    """The names of what is in a folder, and in those folders of it that a package may have."""
    found = set(folder.iterdir())
    for below in (folder / RESULTS_FOLDER, folder / TEMPLATES_FOLDER):
        if below.is_dir():
            found = found - {below} | set(below.iterdir())
    return frozenset(path.relative_to(folder).as_posix() for path in found)


def _download(repo_id: str, revision: str | None) -> Package:
    """Downloads the files that a repository's recipe names, and no others."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, HTTPError, OfflineModeIsEnabled

    try:
        try:
            info = HfApi().model_info(repo_id, revision=revision, files_metadata=True)
        except OfflineModeIsEnabled:
            folder = Path(snapshot_download(repo_id, revision=revision, local_files_only=True))
            return Package(repo_id, folder, folder.name, _listing(folder))
        names = frozenset(sibling.rfilename for sibling in info.siblings or ())
        if RECIPE_NAME not in names:
            raise ShortVError(f"{repo_id} has no {RECIPE_NAME}: it was not published by shortv-export.")
        path = Path(hf_hub_download(repo_id, RECIPE_NAME, revision=info.sha))
        wanted = sorted(expected_files(Recipe.load(path)) & names)
        download_files(repo_id, info, path.parent, wanted, f"downloading {repo_id}")
    except (HTTPError, EntryNotFoundError, HFValidationError, OSError) as error:
        raise hub_error(error, f"model {repo_id}") from error
    return Package(repo_id, path.parent, info.sha, names)
