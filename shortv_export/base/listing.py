"""What a base holds: the names of its files and folders, and which of them a package leaves out."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import ShortVError, shown
from ..files import read_json, write_json
from ..records import CARD_NAME, CONFIG_NAME, FOREIGN_FILES, TEMPLATES_FOLDER

_ADAPTER = "adapter_config.json"
_LONGEST = 100


def names_in(folder: Path) -> set[str]:
    """The names of what is in a local folder, as `names_of` gives those of a repository.

    Raises:
        ShortVError: the folder cannot be read.
    """
    try:
        return names_of(_paths(folder))
    except OSError as error:
        raise ShortVError(f"cannot read {error.filename or folder}: {error.strerror}.") from None


def names_of(paths: Iterable[str]) -> set[str]:
    """The names of files at the top, and of folders with a ``/`` at the end.

    Of files in folders, only those in the folder of chat templates and the configurations of adapters are named.
    """
    names = set()
    for path in paths:
        top, *below = path.split("/", 2)
        if below and top == TEMPLATES_FOLDER:
            names.add(f"{top}/{below[0]}" + "/" * (len(below) > 1))
        elif below:
            names |= {f"{top}/"} | ({path} if below == [_ADAPTER] else set())
        else:
            names.add(path)
    return names


def remember_names(commit: str, names: Collection[str]) -> None:
    """Remembers what a commit of a repository holds, which never changes, for when there is no network."""
    with suppress(ShortVError, OSError):
        write_json(_memory(commit), sorted(names))


def recall_names(commit: str) -> set[str] | None:
    """The names of everything in a commit; None if they are not remembered."""
    with suppress(ShortVError):
        names = read_json(_memory(commit))
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return set(names)
    return None


def _memory(commit: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HOME, "shortv-export", "names", f"{commit}.json")


def left_out(names: Collection[str], files: Collection[str], config: dict[str, Any]) -> tuple[str, ...]:
    """The sorted names of what a package leaves out.

    Args:
        names: of everything in the base (see `names_of`).
        files: those that a package takes over.
        config: the base's ``config.json``. A package has its own, with all fields but ``auto_map``.
    """
    known = {*files, CONFIG_NAME, CARD_NAME, *FOREIGN_FILES, *(f"{name}/" for name in FOREIGN_FILES)}
    fields = {f"{CONFIG_NAME}: auto_map"} if config.get("auto_map") else set()
    return tuple(sorted(set(names) - known | fields))


def told(names: Iterable[str]) -> list[str]:
    """The names as they may be shown and recorded, each of at most 100 characters."""
    lines = map(shown, names)
    return [line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…" for line in lines]


def _paths(folder: Path) -> Iterator[str]:
    """The paths that `names_of` looks at. No other folder is entered, as they may hold any number of files."""
    for name in os.listdir(folder):
        path = folder / name
        if not os.path.isdir(path):
            yield from [name] if os.path.exists(path) else []  # or it is a link to nowhere
        elif name == TEMPLATES_FOLDER:
            yield from (f"{name}/{each}" + "/" * os.path.isdir(path / each) for each in os.listdir(path))
        else:
            yield f"{name}/"
            yield from [f"{name}/{_ADAPTER}"] if os.path.exists(path / _ADAPTER) else []
