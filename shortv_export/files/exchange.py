"""Replaces a folder by another, so that its name never has anything but the whole old or the whole new one.

Linux swaps two names in one step. Elsewhere it takes two renames. If the process is killed between them, the old
folder is beside its name, and the next command that looks for it puts it back (`recover`).
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import ShortVError
from .temporary import lock

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def replacement(folder: Path, keep: Collection[str] = ()) -> Iterator[Path]:
    """Yields a hidden folder beside `folder` to write into. At the end it takes the place of `folder`.

    Args:
        folder: the folder to replace, not a link.
        keep: names of entries that move over from the old folder.

    Raises:
        ShortVError: it cannot be replaced, or another process is about to replace it. It is as before.
    """
    new, old = _beside(folder)
    handles: list[int] = []
    try:
        handles.append(os.open(folder, os.O_RDONLY))
        if lock(handles[0]) is False:
            raise ShortVError(f"another command is replacing {folder}; wait for it.")
        recover(folder, keep)
        new.mkdir(mode=0o755)
        handles.append(os.open(new, os.O_RDONLY))
        lock(handles[1])
        try:
            yield new
            _exchange(new, folder)
        finally:  # an interruption may come at any point
            _put_back(folder)
            for left in (new, old):
                _clear(left, folder, keep)
    except FileExistsError:
        raise ShortVError(f"{new} is left of an interrupted command; take out what you need, and remove it.") from None
    except OSError as error:
        raise ShortVError(f"cannot replace {folder}: {error.strerror or error}.") from None
    finally:
        for handle in handles:
            os.close(handle)


def recover(folder: Path, keep: Collection[str] = ()) -> None:
    """Finishes what a killed process left of a `replacement`. Does nothing to one that is still at work."""
    folder = Path(os.path.realpath(folder))
    if not folder.name:
        return
    with suppress(OSError):
        _put_back(folder)
    for left in _beside(folder):
        with suppress(OSError):
            handle = os.open(left, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
            try:
                if lock(handle):
                    _clear(left, folder, keep)
            finally:
                os.close(handle)


def _beside(folder: Path) -> tuple[Path, Path]:
    """Where the new folder is made, and where the old one is between the two renames."""
    return folder.with_name(f".{folder.name}.shortv-new"), folder.with_name(f".{folder.name}.shortv-old")


def _exchange(new: Path, folder: Path) -> None:
    if not _swap(new, folder):
        _, old = _beside(folder)
        os.rename(folder, old)
        os.rename(new, folder)


def _put_back(folder: Path) -> None:
    """Gives the old folder its name again, if only the first of the two renames was made."""
    _, old = _beside(folder)
    if os.path.lexists(old) and not os.path.lexists(folder):
        os.rename(old, folder)


def _swap(one: Path, other: Path) -> bool:
    """Swaps two names in one step; returns False if the system or the file system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # not Linux
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def _clear(old: Path, folder: Path, keep: Collection[str]) -> None:
    """Moves what is kept from the old folder to its place, and removes the old folder."""
    for name in keep:
        if os.path.lexists(old / name) and not os.path.lexists(folder / name):
            os.rename(old / name, folder / name)
    if not any(os.path.lexists(old / name) for name in keep):
        shutil.rmtree(old, ignore_errors=True)
