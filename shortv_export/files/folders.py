"""Folders that appear whole or not at all, and files that are linked or copied into them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import ShortVError
from .hashing import file_sha256


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Makes the folder `out` whole or not at all.

    Yields a hidden folder beside `out` to write into. It is renamed to `out` at the end. If anything is raised before,
    it is removed, with the parent folders that were made for it.

    Args:
        out: must not exist yet, or be an empty folder.

    Raises:
        ShortVError: the disk refuses something.
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
            with suppress(OSError):  # not empty: it holds `out`
                parent.rmdir()


def link_or_copy(source: Path, target: Path) -> bool:
    """Puts a file where there is none yet: as a hard link if the disk allows, else as a copy.

    The target's folder is made. Where the source is a symbolic link, the file behind it is meant, as in a Hub cache.

    Returns:
        Whether it is a link, and so the same file.
    """
    source = Path(os.path.realpath(source))
    target.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):  # another disk, or a file system without links
        os.link(source, target)
        return True
    shutil.copyfile(source, target)
    return False


def carry(source: Path, target: Path, sha256: str) -> None:
    """Puts a file of the base into the package: weights as a hard link if possible, the rest as a copy.

    Raises:
        ShortVError: the copy does not have this sha256.
    """
    if target.suffix != ".safetensors":  # small, and people edit it: a link would change the base as well
        shutil.copyfile(source, target)
    elif link_or_copy(source, target):
        return
    if file_sha256(target) != sha256:
        raise ShortVError(f"the copy of {target.name} differs from the base's file; run the command again.")
