"""Free disk space, checked before anything is written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ShortVError

if TYPE_CHECKING:
    pass


def check_space(folder: Path, size: int, what: str, advice: str) -> None:
    """Refuses what does not fit.

    Args:
        folder: where it goes; need not exist yet.
        size: bytes.
        what: needs them, for the message: ``"downloading acme/base"``.
        advice: what to do if there is less.

    Raises:
        ShortVError: less is free on that disk.
    """
    place = _existing(folder)
    free = shutil.disk_usage(place).free
    if size > free:
        raise ShortVError(f"{what} needs {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free in {place}; {advice}.")


def same_device(one: Path, other: Path) -> bool:
    """Whether files of one folder can be hard-linked into the other, as far as the disks decide that."""
    return os.stat(_existing(one)).st_dev == os.stat(_existing(other)).st_dev


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = Path(os.path.abspath(path))
    return next(place for place in (path, *path.parents) if place.exists())
