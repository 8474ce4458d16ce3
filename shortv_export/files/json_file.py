"""Reads JSON files up to a size limit; writes JSON and text files atomically."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from ..errors import ShortVError
from .reading import read_regular

MAX_JSON_BYTES = 64 * 1024 * 1024
"""How large a JSON file may be."""


def read_json(path: str | Path, *, folder: Path | None = None, most: int = MAX_JSON_BYTES) -> Any:
    """Parses a JSON file. It may be hostile: see `open_regular`, also for `folder` and `most`.

    Raises:
        ShortVError: the file is missing, unreadable, no regular file, too large, outside the folder, or not JSON.
    """
    try:
        return json.loads(read_regular(Path(path), folder=folder, most=most).decode("utf-8"))
    except (ValueError, RecursionError):
        raise ShortVError(f"{path} is not valid JSON.") from None


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
    """Writes a text file atomically, by renaming a temporary file beside it. Makes its folder if needed.

    Raises:
        ShortVError: the folder is not writable, or the text has a lone surrogate, as parsed JSON may have.
    """
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise ShortVError(f"cannot write {path}: its text is not valid Unicode.") from None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise ShortVError(f"cannot write {path}: {error.strerror}.") from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
