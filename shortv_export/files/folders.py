"""Makes and replaces folders in one step."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import ShortVError
from .copies import copy_file


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Makes the folder `out`, complete or not at all; `out` must be missing or empty before.

    Yields a hidden folder beside `out` to write into, and renames it to `out` at the end. After an exception, it is
    removed, together with new parent folders.

    Raises:
        ShortVError: writing failed.
    """
    new_parents = [parent for parent in out.parents if not parent.exists()]
    folder = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        yield folder
        folder.chmod(0o755)  # mkdtemp makes private folders
        os.replace(folder, out)
    except OSError as error:
        raise ShortVError(f"cannot write {out}: {error.strerror or error}.") from None
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
        for parent in new_parents:
            with suppress(OSError):  # not empty, as it holds `out`
                parent.rmdir()


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
