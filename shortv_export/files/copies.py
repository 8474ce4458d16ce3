"""Copies files. A copy never shares bytes that can be written with its source.

Where the file system can (Btrfs, XFS, APFS and others), a copy is a clone: it shares the disk's blocks until one of
the two files is written to, and so takes neither time nor room.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO

from .disk import existing
from .hashing import file_sha256, read_through, remember_sha256
from .reading import open_regular

_FICLONE = 0x40049409  # of linux/fs.h


def copy_file(source: Path, target: Path, *, folder: Path) -> str:
    """Makes a new file with the content of another. Makes its folder, too.

    Args:
        source: the file, which may be hostile.
        target: the new file.
        folder: where the source must lie (see `open_regular`).

    Returns:
        The sha256 of the content. It is remembered (see `file_sha256`).

    Raises:
        ShortVError: the source cannot be read, is no regular file, or lies elsewhere.
        OSError: the copy cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with open_regular(source, folder=folder) as file:
        if _clone(file, target):
            sha256 = file_sha256(source, remembered=True, folder=folder)
        else:
            with target.open("xb") as copy:
                sha256 = read_through(file, f"Copying {source.name}", copy.write)
    remember_sha256(target, sha256)
    return sha256


def copies_are_clones(source: Path, folder: Path) -> bool:
    """Whether copies of a file in a folder, which need not exist yet, take no room."""
    try:
        with tempfile.TemporaryDirectory(prefix=".shortv-", dir=existing(folder)) as probe, open(source, "rb") as file:
            return _clone(file, Path(probe, "clone"))
    except OSError:
        return False


def _clone(source: BinaryIO, target: Path) -> bool:
    """Makes the new file a clone of an open one, if the file system can."""
    if sys.platform == "darwin":
        import ctypes

        here = -2  # AT_FDCWD: `target` is a path like any other
        cloned: int = ctypes.CDLL(None).fclonefileat(source.fileno(), here, os.fsencode(target), 0)
        return cloned == 0
    if sys.platform != "linux":
        return False
    import fcntl

    with target.open("xb") as copy:
        try:
            fcntl.ioctl(copy.fileno(), _FICLONE, source.fileno())
            return True
        except OSError:  # another disk, or a file system that cannot
            pass
    target.unlink()
    return False
