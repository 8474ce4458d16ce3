"""Disks: their free space, which paths share one, and where can be written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ..errors import ShortVError
from .temporary import temporary_beside

_PROBE = 1 << 20  # bytes; more than the files that are written after hours of work


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


def check_writable(path: Path, *, folder: bool = False) -> None:
    """Checks, before any work, that a file or a new folder can be written: tries it beside `path`, and leaves nothing.

    Args:
        path: the file, which may exist; or the folder, which is missing or empty.
        folder: whether it is a folder.

    Raises:
        ShortVError: it cannot be written.
    """
    kind = "folder" if folder else "file"
    try:
        real = Path(os.path.realpath(path))
        if reason := _occupied(real, folder):
            raise ShortVError(f"{path} {reason}; name another {kind}.")
        with temporary_beside(real) as probe:
            # A name as long as that of any file beside it, such as those of `measure.PartialResults`.
            longest = probe.with_name(f"{real.name}.partial-1234.jsonl{probe.name[-9:]}")
            with probe.open("wb") as file:
                file.write(bytes(_PROBE))
            os.replace(probe, longest)
            longest.unlink()
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        reason = getattr(error, "strerror", None) or str(error)
        raise ShortVError(f"cannot write {path}: {reason}; name another {kind}.") from None


def _occupied(path: Path, folder: bool) -> str:
    """What is at the path and cannot be replaced; empty if there is nothing, or it can."""
    if folder:
        return "is a mount point, which cannot be replaced" if os.path.ismount(path) else ""
    if path.is_dir():
        return "is a folder"
    if os.path.lexists(path) and not path.is_file():
        return "is no regular file"
    return "cannot be written to" if path.is_file() and not os.access(path, os.W_OK) else ""


def same_device(one: Path, other: Path) -> bool:
    """Whether two folders are on the same disk. They need not exist yet."""
    return os.stat(existing(one)).st_dev == os.stat(existing(other)).st_dev


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = Path(os.path.abspath(path))
    return next(place for place in (path, *path.parents) if place.exists())
