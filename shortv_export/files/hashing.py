"""The sha256 of files. Hashes of large files are cached on disk, so that weights are read once.

A file that was written to or replaced has another cache key, even if its modification time was put back.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import ShortVError, shown
from ..progress import progress
from .json_file import read_json, write_json
from .reading import open_regular

_CHUNK = 4 << 20
_LARGE = 16 << 20  # bytes; smaller files are not cached
_SAMPLES = 16
_SAMPLE_SIZE = 4096
_MOST_ENTRIES = 4096
# Newer files are not cached, since they may change again without a change of their modification time.
_SETTLED = 2.0  # seconds

_LOCK = threading.Lock()  # files are hashed in several threads


def file_sha256(path: Path, *, remembered: bool = False, folder: Path | None = None) -> str:
    """A file's sha256, in hexadecimal. Reading a large file shows a progress bar.

    Args:
        path: the file, which may be hostile.
        remembered: whether a cached hash may be used; not when a file is to be verified.
        folder: where the file must lie (see `open_regular`).

    Raises:
        ShortVError: the file cannot be read, is no regular file, or lies elsewhere.
    """
    try:
        with open_regular(path, folder=folder) as file:
            before = os.fstat(file.fileno())
            key = _identity(file, before) if before.st_size >= _LARGE else ""
            if key and remembered and (known := _load().get(key)):
                return known
            sha256 = read_through(file, f"Hashing {shown(path.name)}")
            after = os.fstat(file.fileno())
    except OSError as error:
        raise ShortVError(f"cannot read {path}: {error.strerror}.") from None
    unchanged = _stamp(before) == _stamp(after)
    if key and unchanged and time.time() - max(after.st_mtime, after.st_ctime) > _SETTLED:
        _remember(key, sha256)
    return sha256


def remember_sha256(path: Path, sha256: str) -> None:
    """Remembers the hash of a file that the caller has just written, and that nobody else knows yet."""
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        if status.st_size >= _LARGE:
            _remember(_identity(file, status), sha256)


def read_through(file: BinaryIO, title: str, write: Callable[[bytes], object] | None = None) -> str:
    """Reads the rest of a file, once, and returns its sha256. A large file shows its progress under this title.

    Args:
        file: open for reading.
        title: such as ``"Hashing model.safetensors"``.
        write: is given every chunk, while it is hashed.
    """
    digest, hashed = hashlib.sha256(), Future[None]()
    hashed.set_result(None)
    size = os.fstat(file.fileno()).st_size
    with ThreadPoolExecutor(1) as worker, progress(title, size, "B", hidden=size < _LARGE) as advance:
        while chunk := file.read(_CHUNK):
            hashed.result()
            hashed = worker.submit(digest.update, chunk)
            if write:
                write(chunk)
            advance(len(chunk))
    return digest.hexdigest()


def file_identity(path: Path) -> tuple[int, ...]:
    """What tells whether a file was replaced or written to: two equal answers mean that it was not.

    Raises:
        ShortVError: the file cannot be looked at.
    """
    try:
        return _stamp(path.stat())
    except OSError as error:
        raise ShortVError(f"cannot read {path}: {error.strerror}.") from None


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    # Programs can set the modification time, but not the time of the last change of the inode.
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _identity(file: Any, status: os.stat_result) -> str:
    """Cache key: what `file_identity` gives, and sampled blocks. Rewinds the file."""
    samples = hashlib.sha256()
    for number in range(_SAMPLES):
        file.seek(number * (status.st_size - _SAMPLE_SIZE) // (_SAMPLES - 1))
        samples.update(file.read(_SAMPLE_SIZE))
    file.seek(0)
    return f"{'-'.join(map(str, _stamp(status)))}-{samples.hexdigest()}"


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HOME, "shortv-export", "sha256.json")


def _load() -> dict[str, str]:
    try:
        known = read_json(_cache())
    except ShortVError:  # missing or damaged
        return {}
    return known if isinstance(known, dict) else {}


def _remember(key: str, sha256: str) -> None:
    with _LOCK, suppress(ShortVError, OSError):  # without the cache, hashing only takes longer
        known = {**_load(), key: sha256}
        write_json(_cache(), dict(list(known.items())[-_MOST_ENTRIES:]))
