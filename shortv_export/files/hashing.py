"""The sha256 of files. Hashes of large files are cached on disk, so that weights are read once.

A file that was written to or replaced has another cache key, even if its modification time was put back.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import ShortVError, shown
from .json_file import read_json, write_json
from .reading import open_regular

_CHUNK = 1 << 20
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
    from huggingface_hub.utils import tqdm

    try:
        with open_regular(path, folder=folder) as file:
            before = os.fstat(file.fileno())
            large = before.st_size >= _LARGE
            key = _identity(file, before) if large else ""
            if large and remembered and (known := _load().get(key)):
                return known
            digest = hashlib.sha256()
            size, hidden = before.st_size, not large or None  # with None, the Hub client's settings decide
            with tqdm(
                total=size, unit="B", unit_scale=True, desc=f"Hashing {shown(path.name)}", disable=hidden
            ) as bar:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
                    bar.update(len(chunk))
            after = os.fstat(file.fileno())
    except OSError as error:
        raise ShortVError(f"cannot read {path}: {error.strerror}.") from None
    unchanged = _stamp(before) == _stamp(after)
    if large and unchanged and time.time() - max(after.st_mtime, after.st_ctime) > _SETTLED:
        _remember(key, digest.hexdigest())
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
