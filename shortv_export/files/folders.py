"""Makes and replaces folders in one step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import ShortVError
from .copies import copy_file
from .temporary import temporary_beside


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Makes the folder `out`, complete or not at all; `out` must be missing or empty before.

    Yields a hidden folder beside `out` to write into, and renames it to `out` at the end. After an exception, it is
    removed, together with new parent folders. What a killed process left is removed the next time.

    Raises:
        ShortVError: writing failed.
    """
    real = Path(os.path.realpath(out))  # a link stays a link
    try:
        with temporary_beside(real, folder=True) as folder:
            yield folder
            folder.chmod(0o755)  # temporary folders are private
            os.replace(folder, real)
    except OSError as error:
        raise ShortVError(f"cannot write {out}: {error.strerror or error}.") from None


def move_over(folder: Path, name: str, new: Path) -> None:
    """Puts a file of a folder into the one that will replace it: as a hard link if possible, else as a copy.

    The old folder is complete until it is removed. A symbolic link is copied: the file behind it belongs to others.

    Raises:
        ShortVError: a link points out of the folder (see `open_regular`).
        OSError: the file cannot be written.
    """
    source, target = folder / name, new / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if not source.is_symlink():
        with suppress(OSError):  # a file system without links
            os.link(source, target)
            return
    copy_file(source, target, folder=folder)
