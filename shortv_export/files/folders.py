"""Makes folders in one step, and links or copies files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import ShortVError
from .hashing import file_sha256
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


def link_or_copy(source: Path, target: Path) -> bool:
    """Makes a new file as a hard link to `source` if the disk allows, else as a copy. Makes its folder, too.

    If `source` is a symbolic link, as in a Hub cache, the file that it points to is used.

    Returns:
        Whether the target is a hard link.
    """
    source = Path(os.path.realpath(source))
    target.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):  # another disk, or a file system without links
        os.link(source, target)
        return True
    shutil.copyfile(source, target)
    return False


def carry(source: Path, target: Path, sha256: str) -> None:
    """Puts a file of the base into the package: weights as a hard link if possible, other files as a copy.

    Raises:
        ShortVError: the copy does not have this sha256.
    """
    if target.suffix != ".safetensors":  # people edit small files; editing a link would change the base, too
        shutil.copyfile(source, target)
    elif link_or_copy(source, target):
        return
    if file_sha256(target) != sha256:
        raise ShortVError(f"the copy of {target.name} differs from the base's file; run the command again.")
