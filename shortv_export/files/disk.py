"""Disks: their free space, and which paths share one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ..errors import ShortVError


def check_space(folder: Path, size: int, what: str, advice: str) -> None:
    """Checks that `size` more bytes fit on the disk of a folder, which need not exist yet.

    The error begins with `what`, such as ``"downloading acme/base"``, and ends with `advice`.

    Raises:
        ShortVError: they do not fit.
    """
    place = existing(folder)
    free = shutil.disk_usage(place).free
    if size > free:
        raise ShortVError(f"{what} needs {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free in {place}; {advice}.")


def same_device(one: Path, other: Path) -> bool:
    """Whether two folders are on the same disk. They need not exist yet."""
    return os.stat(existing(one)).st_dev == os.stat(existing(other)).st_dev


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = Path(os.path.abspath(path))
    return next(place for place in (path, *path.parents) if place.exists())
