"""The sha256 of files. That of a large file is kept in the user's cache, so that weights are read once.

The key of the cache is the file's inode, size, modification time and sampled blocks. Hard links, as in packages, share
it; a file that was changed or replaced has another and is read again.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import ShortVError
from .json_file import read_json, write_json

_CHUNK = 1 << 20
_LARGE = 16 << 20  # bytes; smaller files are read each time
_SAMPLES = 16
_SAMPLE_SIZE = 4096
_MOST_ENTRIES = 4096
# A file can change again within the resolution of its modification time: one that is newer than this is not cached.
_SETTLED = 2.0  # seconds

_LOCK = threading.Lock()  # files are hashed in several threads


def file_sha256(path: Path, *, remembered: bool = False) -> str:
    """A file's sha256, in hexadecimal. Reading a large file shows a progress bar.

    Args:
        path: the file.
        remembered: whether the cached sha256 of a large file may be used. Not for checking a file.

    Raises:
        ShortVError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            before = os.fstat(file.fileno())
            large = before.st_size >= _LARGE
            key = _identity(file, before) if large else ""
            if large and remembered and (known := _load().get(key)):
                return known
            digest = hashlib.sha256()
            with _progress(path.name, before.st_size if large else 0) as bar:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
                    bar.update(len(chunk))
            after = os.fstat(file.fileno())
    except OSError as error:
        raise ShortVError(f"cannot read {path}: {error.strerror}.") from None
    unchanged = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    if large and unchanged and time.time() - after.st_mtime > _SETTLED:
        _remember(key, digest.hexdigest())
    return digest.hexdigest()


def _identity(file: Any, status: os.stat_result) -> str:
    """The cache key: device, inode, size, modification time and sampled blocks. The file is rewound."""
    samples = hashlib.sha256()
    for number in range(_SAMPLES):
        file.seek(number * (status.st_size - _SAMPLE_SIZE) // (_SAMPLES - 1))
        samples.update(file.read(_SAMPLE_SIZE))
    file.seek(0)
    numbers = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    return f"{'-'.join(map(str, numbers))}-{samples.hexdigest()}"


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HOME, "shortv-export", "sha256.json")


def _load() -> dict[str, str]:
    try:
        known = read_json(_cache())
    except ShortVError:  # none yet, or damaged
        return {}
    return known if isinstance(known, dict) else {}


def _remember(key: str, sha256: str) -> None:
    with _LOCK, suppress(ShortVError, OSError):  # a cache that cannot be written costs time, nothing else
        known = {**_load(), key: sha256}
        write_json(_cache(), dict(list(known.items())[-_MOST_ENTRIES:]))


def _progress(name: str, size: int) -> Any:
    """A progress bar in bytes, which is switched off with those of the Hub client's uploads; none for `size` 0."""
    from huggingface_hub.utils import tqdm

    return tqdm(total=size, unit="B", unit_scale=True, desc=f"Hashing {name}", disable=not size or None)
