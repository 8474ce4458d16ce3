"""Where the files of a data set lie: in a folder, or in a repository on the Hub (`repository.Repository`).

A row may name a picture or a video there. Anybody may have written the row, so it can name nothing else: no address,
no file elsewhere. Such names never reach fsspec, which opens addresses of every kind, one inside the other.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from ..errors import ShortVError
from ..files import open_regular


class Place(Protocol):
    """What holds the files of a data set. Their names are relative to its root, with slashes.

    Attributes:
        prefix: what a row writes before the name of a file.
    """

    @property
    def prefix(self) -> str: ...

    def open(self, name: str) -> BinaryIO:
        """Opens a file, to read it in parts.

        Raises:
            ShortVError: it cannot be read.
        """

    def named(self, name: str, most: int) -> BinaryIO:
        """Opens a file that a row names.

        Raises:
            ValueError: it is not in the data set, no regular file, or larger than `most` bytes.
            ShortVError: the Hub does not answer.
        """


def below_root(name: str) -> str:
    """Checks that a name of a file, which anybody may have written, stays below a root; returns it.

    Raises:
        ValueError: it is an address, absolute, or leads out.
    """
    if "://" in name or "::" in name:
        raise ValueError("it is an address; only files of the data set are opened")
    if not name or "\0" in name:
        raise ValueError("it is no name of a file")
    if Path(name).anchor:
        raise ValueError("its path is absolute; name files relative to the data set's folder")
    if ".." in re.split(r"[/\\]", name):
        raise ValueError("it lies outside the data set")
    return name


@dataclass(frozen=True)
class Folder:
    """A folder on this machine.

    Attributes:
        root: its path.
        given: the file in it that the user named. It may be a link to anywhere.
    """

    root: Path
    given: str | None = None
    prefix = ""

    def names(self) -> list[str]:
        """All files in it and its subfolders, sorted. Hidden ones are left out; links to folders are not followed.

        Raises:
            ShortVError: a folder cannot be listed.
        """

        def fail(error: OSError) -> None:
            raise ShortVError(f"cannot read the folder {error.filename}: {error.strerror}.")

        found: list[str] = []
        for folder, folders, files in os.walk(self.root, onerror=fail):
            folders[:] = [name for name in folders if not name.startswith(".")]
            inside = Path(folder).relative_to(self.root)
            found += [(inside / name).as_posix() for name in files if not name.startswith(".")]
        return sorted(found)

    def open(self, name: str) -> BinaryIO:
        """See `Place`."""
        return open_regular(self.root / name, folder=None if name == self.given else self.root)

    def named(self, name: str, most: int) -> BinaryIO:
        """See `Place`."""
        return open_named(self.root / below_root(name), self.root, most)


def open_named(path: Path, folder: Path, most: int) -> BinaryIO:
    """Opens a file that a row names.

    Raises:
        ValueError: it lies outside the folder, is no regular file, or is larger than `most` bytes. The path is not in
            the message, so that equal reasons can be counted.
    """
    try:
        return open_regular(path, folder=folder, most=most)
    except ShortVError as error:
        raise ValueError(str(error).replace(str(path), "it").rstrip(".")) from None
