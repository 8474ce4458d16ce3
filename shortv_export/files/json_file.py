"""Reads JSON files up to a size limit; writes JSON and text files, whole or not at all."""

from __future__ import annotations

import json
import os
from itertools import chain
from pathlib import Path
from typing import Any

from ..errors import ShortVError
from .reading import read_regular
from .temporary import temporary_beside

MAX_JSON_BYTES = 64 * 1024 * 1024
"""How large a JSON file may be."""
_MAX_DEPTH = 100


def read_json(path: str | Path, *, folder: Path | None = None, most: int = MAX_JSON_BYTES) -> Any:
    """Parses a JSON file. It may be hostile: see `open_regular`, also for `folder` and `most`.

    Raises:
        ShortVError: the file is missing, unreadable, no regular file, too large, outside the folder, not JSON, or
            nested too deep.
    """
    try:
        value = json.loads(read_regular(Path(path), folder=folder, most=most).decode("utf-8"))
    except (ValueError, RecursionError):
        raise ShortVError(f"{path} is not valid JSON.") from None
    if _is_deep(value):
        raise ShortVError(f"{path} is nested more than {_MAX_DEPTH} levels deep.")
    return value


def _is_deep(value: Any) -> bool:
    """Whether a value is nested so deep that code which walks through it may not come to its end."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(_MAX_DEPTH):
        inner = chain.from_iterable(each.values() if isinstance(each, dict) else each for each in level)
        level = [each for each in inner if isinstance(each, dict | list)]
    return bool(level)


def json_text(value: Any) -> str:
    """Indented JSON, with keys in the given order.

    Raises:
        ValueError: `value` holds NaN or an infinity.
    """
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file (see `json_text` and `write_text`)."""
    write_text(path, json_text(value))


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all, by renaming a temporary file beside it. Makes its folder if needed.

    If `path` is a link, the file that it points to is written.

    Raises:
        ShortVError: it cannot be written, or the text has a lone surrogate, as parsed JSON may have.
    """
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise ShortVError(f"cannot write {path}: its text is not valid Unicode.") from None
    try:
        real = Path(os.path.realpath(path))
        with temporary_beside(real) as temporary:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # or a power cut may leave an empty file under the name
            temporary.chmod(0o644)
            os.replace(temporary, real)
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise ShortVError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}.") from None
