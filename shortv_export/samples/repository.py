"""A data set on the Hub at one commit: its configurations and splits, and its files.

`datasets` finds out which files make up a split. It takes names of files and the card's ``configs`` for addresses, so
both are checked before it sees them. It opens no file of a split; those are read through `Repository`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from ..errors import ShortVError
from ..hub import hub_error, plain_if_xet_fails, retry
from .places import below_root, open_named
from .source import Source

_MOST_CARD_BYTES = 4 << 20
_MOST_VALUES = 1_000_000


@dataclass(frozen=True)
class Split:
    """The files that make up one split.

    Attributes:
        name: of the split.
        reader: what `datasets` takes them for, such as ``"parquet"`` or ``"imagefolder"``.
        files: their names.
    """

    name: str
    reader: str
    files: list[str]


@dataclass(frozen=True)
class Repository:
    """A data set's repository at one commit.

    Attributes:
        repo_id: its name on the Hub; an old name may lead to it.
        commit: the commit.
    """

    repo_id: str
    commit: str

    @classmethod
    def find(cls, source: Source) -> Repository:
        """Pins the commit.

        Raises:
            ShortVError: there is no such data set or revision, or the Hub does not answer.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError, HTTPError

        if source.path[0] in "./~":
            raise ShortVError(f"there is no file or folder {source.path!r}; give one that exists, or a Hub id.")
        what = f"data set {source.path}" + (f" at revision {source.revision}" if source.revision else "")
        try:
            info = HfApi().dataset_info(source.path, revision=source.revision)
            return cls(str(info.id), str(info.sha))
        except HFValidationError:
            raise ShortVError(
                f"{source.path!r:.100} is neither a file or folder here nor a Hub id of a data set."
            ) from None
        except (HTTPError, OSError) as error:
            raise hub_error(error, what) from error

    @property
    def prefix(self) -> str:
        """What `datasets` writes before the name of a file."""
        return f"hf://datasets/{self.repo_id}@{self.commit}/"

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The files and their sizes."""
        from huggingface_hub import HfFileSystem

        # `datasets` asks the same file system, which remembers the answer.
        root = self.prefix.removeprefix("hf://")
        found: Any = HfFileSystem().find(root, detail=True, expand_info=False)
        return {name.removeprefix(root): int(info["size"] or 0) for name, info in found.items()}

    def open(self, name: str) -> BinaryIO:
        """See `Place`."""
        from huggingface_hub import HfFileSystem

        # Used by itself, this file system takes no chain of addresses.
        return cast(BinaryIO, HfFileSystem().open(self.prefix + below_root(name), "rb", revision=self.commit))

    def named(self, name: str, most: int) -> BinaryIO:
        """See `Place`. The file is downloaded, if it is not too large."""
        from huggingface_hub import hf_hub_download

        if below_root(name) not in self.sizes:
            raise ValueError("it does not exist in the data set")
        if self.sizes[name] > most:
            raise ValueError(f"it is larger than {most:,} bytes")

        def download() -> str:
            return hf_hub_download(self.repo_id, name, repo_type="dataset", revision=self.commit)

        path = retry(lambda: plain_if_xet_fails(download), f"{name!r:.100} of the data set {self.repo_id}")
        snapshot = Path(path).parents[len(PurePosixPath(name).parts) - 1]
        return open_named(Path(path), snapshot, most)

    def splits(self, config: str | None) -> dict[str, Split]:
        """The splits of a configuration, by name. None stands for the default configuration.

        Raises:
            ShortVError: a name of a file or the card would make `datasets` open something else; or a file of the
                configuration lies elsewhere.
            Exception: whatever `datasets` raises over a data set that it cannot read.
        """
        from datasets import load_dataset_builder

        self._check()
        # The address of the Hub: a name alone may also be a folder here, or a reader of `datasets`.
        builder = load_dataset_builder(f"hf://datasets/{self.repo_id}", config, revision=self.commit)
        files = builder.config.data_files or {}
        if any(not name.startswith(self.prefix) for names in files.values() for name in names) or not files:
            raise ShortVError(f"the configuration {builder.config.name!r} of {self.repo_id} has no files of its own.")
        return {
            str(split): Split(str(split), builder.name, [below_root(name.removeprefix(self.prefix)) for name in names])
            for split, names in files.items()
        }

    def _check(self) -> None:
        """Refuses what `datasets` would take for an address or for a file of this machine, before it opens that."""
        for name in self.sizes:
            if "::" in name:
                raise ShortVError(f"{self.repo_id} has a file {name!r:.100}, a name like an address; take other data.")
        card = self._card()
        _texts(card)  # `datasets` copies the card, each value as often as it is repeated
        configs = card.get("configs")
        for config in configs if isinstance(configs, list) else ():
            named = [config.get("data_files"), config.get("data_dir")] if isinstance(config, dict) else []
            for pattern in _texts(named):
                try:
                    below_root(pattern)
                    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", pattern):  # such as data:text
                        raise ValueError("it is an address")
                except ValueError as error:
                    raise ShortVError(
                        f"the card of {self.repo_id} takes data from {pattern!r:.100}, which is not opened: {error}."
                    ) from None

    def _card(self) -> dict[str, Any]:
        """The fields of the card, and of the file whose fields take their place, as `datasets` finds them."""
        import yaml
        from huggingface_hub.repocard import REGEX_YAML_BLOCK

        card: dict[str, Any] = {}
        for name in ("README.md", ".huggingface.yaml"):
            if name in self.sizes:
                with self.named(name, _MOST_CARD_BYTES) as file:
                    text = file.read().decode()
                if name == "README.md":
                    block = REGEX_YAML_BLOCK.search(text)
                    text = block[2] if block else ""
                if "<<" in text:  # merges of merges would fill memory
                    raise ShortVError(f"the card of {self.repo_id} merges fields with <<, which is not read.")
                card |= yaml.safe_load(text) or {}
        return card


def _texts(value: Any) -> list[str]:
    """All texts in a nested value.

    Raises:
        ValueError: it has too many parts, each counted as often as it is repeated.
    """
    waiting: list[Any] = [value]
    found: list[str] = []
    for _ in range(_MOST_VALUES):
        if not waiting:
            return found
        value = waiting.pop()
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, dict | list):
            waiting += value.values() if isinstance(value, dict) else value
    raise ValueError(f"its card has more than {_MOST_VALUES:,} values")
