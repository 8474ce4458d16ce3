"""Forecasts what pushing a base would do, without its weights and scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..base import BaseModel
from ..errors import ShortVError
from ..hub import cached_repo_id
from ..options import Contents
from ..packaging import HANDLER_NAME
from ..records import CARD_NAME, CONFIG_NAME, EVALUATION_NAME, FIGURE_NAME, RECIPE_NAME, WEIGHT_FILES, Selection
from .card import check_card
from .ignored import check_ignored
from .plan import (
    can_be_copied,
    file_rows,
    files_of_base,
    outdated_files,
    published_recipe,
    replaced_model,
)
from .repository import Repository, describe, describe_space

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile


@dataclass(frozen=True)
class Forecast:
    """What a push of a base would do, as far as is known before the package is made.

    Attributes:
        repo_id: with its namespace.
        url: of the repository.
        exists, private: whether the repository exists, and whether it is private, or will be.
        frozen_layers: None if they are still to be measured.
        frozen_attention, frozen_ffn: layers that freeze a single operator.
        copied, copied_bytes: names and total size of the base's files that the Hub copies from the base's repository.
        uploaded, uploaded_bytes: those of the base's files that this machine uploads.
        made: names of the files that this tool writes; small, but of unknown size.
        sizes: bytes of each file of the base that is copied or uploaded.
        deleted: names of the files that only an earlier package had.
        replaces: the model that is there, in words, unless it is known to be the same.
        dry_run: True.
        space: URL of the Space, if one is asked for.
    """

    repo_id: str
    url: str
    exists: bool
    private: bool
    frozen_layers: tuple[int, ...] | None
    copied: tuple[str, ...]
    uploaded: tuple[str, ...]
    made: tuple[str, ...]
    copied_bytes: int
    uploaded_bytes: int
    sizes: dict[str, int]
    deleted: tuple[str, ...]
    replaces: str | None
    dry_run: bool = True
    frozen_attention: tuple[int, ...] = ()
    frozen_ffn: tuple[int, ...] = ()
    space: str | None = None

    @property
    def summary(self) -> str:
        """The forecast in one line."""
        if self.frozen_layers is None:
            layers = "after measuring which layers to freeze"
        else:
            lists = {"layers": self.frozen_layers, "attention of": self.frozen_attention, "FFN of": self.frozen_ffn}
            named = [f"{what} {', '.join(map(str, found))}" for what, found in lists.items() if found]
            layers = f"with {' and '.join(named)} frozen"
        return (
            f"would push to {describe(self)} in one commit, {layers}: "
            f"{len(self.copied)} files of the base copied on the Hub ({self.copied_bytes:,} bytes), "
            f"{len(self.uploaded)} uploaded ({self.uploaded_bytes:,} bytes), "
            f"and {len(self.made)} made here ({', '.join(self.made)})"
            + (f", {len(self.deleted)} files deleted" if self.deleted else "")
            + (f"; this replaces the model that is there: {self.replaces}" if self.replaces else "")
            + describe_space(self)
        )

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """What happens to each file: what, its name and, where it is known, its size."""
        files = {"copied on the Hub": self.copied, "uploaded": self.uploaded, "made here": self.made}
        return file_rows({**files, "deleted": self.deleted}, self.sizes)


def forecast_push(
    base: BaseModel,
    repository: Repository,
    selection: Selection | None,
    *,
    contents: Contents = Contents(),
    evaluated: bool = False,
) -> Forecast:
    """What `push_package` would do with a package of this base. Changes nothing and needs no weights.

    Args:
        base: from `resolve_base`, with or without weights.
        repository: where to publish, from `inspect_repository`.
        selection: which layers are frozen; None if they are still to be measured.
        contents: what the package will hold.
        evaluated: whether the package is evaluated before it is pushed.

    Raises:
        ShortVError: the repository is the base's own, would leave files out of a commit, or has an edited card; or the
            Hub does not give the sizes of the base's files.
    """
    check_card(repository)
    repository.check_base(base.repo_id or cached_repo_id(base.path))
    carried = [name for name in base.files if contents.weights == "copy" or not name.endswith(WEIGHT_FILES)]
    remote = files_of_base(repository.api, base.repo_id, base.revision, carried)
    pending = [name for name in carried if name not in remote or not _same(remote[name], repository.files.get(name))]
    copied = tuple(name for name in pending if name in remote and can_be_copied(remote[name]))
    uploaded = tuple(name for name in pending if name not in copied)
    sizes = {name: file.size for name, file in remote.items()}
    if not base.repo_id:
        sizes = {name: (base.path / name).stat().st_size for name in carried}
    if missing := [name for name in carried if name not in sizes]:
        raise ShortVError(f"the Hub did not give the size of {base.name}'s {missing[0]}; try again later.")
    made = {*base.family.code, CONFIG_NAME, RECIPE_NAME, CARD_NAME}
    if selection is None or selection.method in ("lc", "cosine"):
        made.add(FIGURE_NAME)
    if contents.handler:
        made.add(HANDLER_NAME)
    if evaluated:
        made.add(EVALUATION_NAME)
    check_ignored(repository, [*pending, *sorted(made)])
    there = published_recipe(repository)
    same = (
        # The files of a local base are not compared here.
        base.repo_id is not None
        and there is not None
        and selection is not None
        and (there.base.repo_id, there.base.revision, there.frozen) == (base.repo_id, base.revision, selection.frozen)
    )
    return Forecast(
        repo_id=repository.repo_id,
        url=repository.url,
        exists=repository.exists,
        private=repository.private,
        frozen_layers=selection.frozen_layers if selection else None,
        frozen_attention=selection.frozen_attention if selection else (),
        frozen_ffn=selection.frozen_ffn if selection else (),
        copied=copied,
        uploaded=uploaded,
        made=tuple(sorted(made)),
        copied_bytes=sum(sizes[name] for name in copied),
        uploaded_bytes=sum(sizes[name] for name in uploaded),
        sizes={name: sizes[name] for name in pending},
        deleted=tuple(sorted(outdated_files(repository, there) - {*carried, *made})),
        replaces=None if same else replaced_model(repository, there),
    )


def _same(one: RepoFile, other: RepoFile | None) -> bool:
    if other is None or one.size != other.size:
        return False
    return one.lfs.sha256 == other.lfs.sha256 if one.lfs and other.lfs else one.blob_id == other.blob_id
