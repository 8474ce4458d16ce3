"""Free disk space, checked before anything is written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ..errors import ShortVError


def check_space(folder: Path, size: int, what: str, advice: str) -> None:
    """Refuses to write more than fits on the disk.

    Args:
        folder: where it would be written; need not exist yet.
        size: bytes.
        what: what needs them, for the message: ``"downloading acme/base"``.
        advice: what to do if they are not free, for the message.

    Raises:
        ShortVError: less is free.
    """
    place = _existing(folder)
    free = shutil.disk_usage(place).free
    if size > free:
        raise ShortVError(f"{what} needs {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free in {place}; {advice}.")


def same_device(one: Path, other: Path) -> bool:
    """Whether two folders are on the same disk, so that files can be hard-linked. They need not exist yet."""
    return os.stat(_existing(one)).st_dev == os.stat(_existing(other)).st_dev


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = Path(os.path.abspath(path))
    return next(place for place in (path, *path.parents) if place.exists())
