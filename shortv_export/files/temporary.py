"""Hidden files and folders beside what they will become. Those of killed processes are removed by the next.

The process that fills one holds a lock on it. The system lets go of the lock when that process ends, however it does.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import ShortVError

try:
    import fcntl
except ImportError:  # Windows: no locks, and nothing is removed for others
    fcntl = None  # type: ignore[assignment]

_MARK = ".shortv-"  # so that nobody else's hidden file is taken for one of ours
_RANDOM = 8  # characters that `tempfile` adds
_LONGEST = 200  # bytes of the name, of the 255 that most file systems allow


@contextmanager
def temporary_beside(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """Makes a hidden file or folder beside `path`, which may be renamed to `path`, and removes it at the end if not.

    Removes those for the same path that killed processes have left. Missing parent folders are made, and removed again
    if they stay empty.

    Raises:
        OSError: it cannot be made.
    """
    with parents_of(path):
        prefix = f".{_shortened(path.name)}{_MARK}"
        _remove_stale(path.parent, prefix)
        hidden, handle = _make(path.parent, prefix, folder)
        try:
            yield hidden
        finally:
            _remove(hidden)
            if handle is not None:
                os.close(handle)


@contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """A folder for temporary files, removed at the end. Those of the same name that killed processes left are, too.

    Raises:
        ShortVError: it cannot be made.
    """
    place = Path(tempfile.gettempdir(), name)
    try:
        with temporary_beside(place, folder=True) as folder:
            yield folder
    except OSError as error:
        raise ShortVError(f"cannot write in {place.parent}: {error.strerror or error}.") from None


@contextmanager
def parents_of(path: Path) -> Iterator[None]:
    """Makes the folders above a path, and removes the new ones at the end if they are empty.

    Raises:
        OSError: they cannot be made.
    """
    new = [parent for parent in path.parents if not os.path.lexists(parent)]
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:  # what there is is no folder
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path.parent)) from None
        yield
    finally:
        for parent in new:
            with suppress(OSError):  # not empty, or never made
                parent.rmdir()


def lock(handle: int) -> bool | None:
    """Takes the lock of an open file or folder, without waiting. It lasts until the handle is closed.

    Returns:
        Whether it was taken: False if another process has it, None if the file system has no locks.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _make(parent: Path, prefix: str, folder: bool) -> tuple[Path, int | None]:
    """A new file or folder, and its handle, which holds the lock; None on a system without."""
    while True:
        if folder:
            handle, name = None, tempfile.mkdtemp(prefix=prefix, dir=parent)
        else:
            handle, name = tempfile.mkstemp(prefix=prefix, dir=parent)
        if fcntl is None:
            if handle is not None:
                os.close(handle)
            return Path(name), None
        # A process that looks for those of dead ones may have it for a moment, and remove it.
        with suppress(FileNotFoundError):
            handle = os.open(name, os.O_RDONLY) if handle is None else handle
            with suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            if os.path.lexists(name):
                return Path(name), handle
            os.close(handle)


def _remove_stale(parent: Path, prefix: str) -> None:
    with os.scandir(parent) as entries:
        names = [each.name for each in entries if each.name.startswith(prefix)]
    for name in names:
        if len(name) != len(prefix) + _RANDOM:
            continue
        with suppress(OSError):
            handle = os.open(parent / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if lock(handle):
                    _remove(parent / name)
            finally:
                os.close(handle)


def _remove(path: Path) -> None:
    with suppress(OSError):
        if stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _shortened(name: str) -> str:
    while len(os.fsencode(name)) > _LONGEST:
        name = name[:-1]
    return name
