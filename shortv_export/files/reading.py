"""Opens files that anybody may have made: of a base, a package, a data set, a resume file.

Such a file may be a pipe that never answers, a device without end, a link to a private file, or too large for memory.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from ..errors import ShortVError


def open_regular(path: Path, *, folder: Path | None = None, most: int | None = None) -> BinaryIO:
    """Opens a regular file for reading, without ever waiting for it.

    Args:
        path: the file.
        folder: where the file must lie, after links are followed. A snapshot in the Hub's cache may link to its blobs.
            None allows any place.
        most: the largest size, in bytes; None for any.

    Raises:
        ShortVError: the file is missing, unreadable, no regular file, too large, or outside the folder.
    """
    try:
        real = Path(os.path.realpath(path, strict=True))
        if folder is not None and not any(real.is_relative_to(root) for root in _roots(folder)):
            raise ShortVError(f"{path} is a link out of its folder; put the file itself there.")
        # A pipe would wait for a writer; O_NOFOLLOW, as a link may have taken the file's place in between.
        handle = os.open(
            real, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
        )
    except FileNotFoundError:
        raise ShortVError(f"{path} does not exist.") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise ShortVError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}.") from None
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        reason = f"{path} is not a regular file; replace it by one."
    elif most is not None and status.st_size > most:
        reason = f"{path} is larger than {most:,} bytes, the limit for such a file."
    else:
        return os.fdopen(handle, "rb")
    os.close(handle)
    raise ShortVError(reason)


def read_regular(path: Path, *, folder: Path | None = None, most: int) -> bytes:
    """Reads a whole file (see `open_regular`), also if it grows meanwhile.

    Raises:
        ShortVError: as `open_regular`.
    """
    with open_regular(path, folder=folder, most=most) as file:
        try:
            content = file.read(most + 1)
        except OSError as error:
            raise ShortVError(f"cannot read {path}: {error.strerror}.") from None
    if len(content) > most:
        raise ShortVError(f"{path} is larger than {most:,} bytes, the limit for such a file.")
    return content


def _roots(folder: Path) -> list[Path]:
    """Where the files of a folder may really lie."""
    real = Path(os.path.realpath(folder))
    return [real, *([real.parent.parent / "blobs"] if real.parent.name == "snapshots" else [])]
