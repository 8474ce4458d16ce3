"""JSON and text files: read up to a largest size, written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from ..errors import ShortVError

_MAX_JSON_BYTES = 64 * 1024 * 1024


def read_json(path: Path) -> Any:
    """Parses a JSON file.

    Raises:
        ShortVError: missing, unreadable, larger than 64 MiB, or not JSON.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ShortVError(f"{path} is larger than {_MAX_JSON_BYTES >> 20} MiB, which no file of its kind is.")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ShortVError(f"{path} does not exist.") from None
    except OSError as error:
        raise ShortVError(f"cannot read {path}: {error.strerror}.") from None
    except (ValueError, RecursionError):
        raise ShortVError(f"{path} is not valid JSON.") from None


def json_text(value: Any) -> str:
    """The text of a JSON file of this tool: indented, with the keys in the given order.

    Raises:
        ValueError: it holds NaN or an infinity.
    """
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, whole or not at all (see `json_text` and `write_text`)."""
    write_text(path, json_text(value))


def write_text(path: Path, text: str) -> None:
    """Writes a text file, and its folder if needed. Writes beside it and renames, so that nobody reads half a file.

    Raises:
        ShortVError: the folder cannot be written, or the text holds a lone surrogate, which JSON can have.
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
