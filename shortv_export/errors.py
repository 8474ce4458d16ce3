"""The exceptions that users see, and foreign text as it may be shown to them."""

from __future__ import annotations

import os
import re

_LONGEST = 300
# A signed address gives access to whoever reads it: its query and the user in it are left out.
_ADDRESS = re.compile(r"(\b[a-z][a-z0-9+.-]*://)(?:[^\s/?#'\"<>]*@)?([^\s?#'\"<>]*)(?:\?[^\s'\"<>]*)?", re.IGNORECASE)
_SECRET = re.compile(r"\bhf_[A-Za-z0-9]{16,}|\bhf_(?:oauth|jwt|app)_[\w.-]+|(?<=\bbearer )\S+", re.IGNORECASE)
_hidden: set[str] = set()  # see `hide`


class ShortVError(Exception):
    """Something the user can act on: one line that says what is wrong and what to do.

    The command line prints it and exits with status 1. Any other exception is a bug.
    """


class UnavailableError(ShortVError):
    """Something on the Hub that cannot be had now: no network, no access, or it is gone."""


class UsageError(ShortVError):
    """Options that do not go together, or a value that is no choice. The command line exits with status 2."""


def one_line(error: object) -> str:
    """What an exception of a library says, in one line of at most 300 characters, to end a `ShortVError` with.

    Addresses lose what signs them, and tokens are masked.
    """
    try:
        text = " ".join(str(error)[:10_000].split())
    except Exception:  # a library's `__str__` may fail, too
        text = ""
    text = without_secrets(text) or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def without_secrets(text: str) -> str:
    """Text without tokens, and without the parts of addresses that give access."""
    for token in (os.environ.get("HF_TOKEN", "").strip(), *_hidden):
        if len(token) >= 8:
            text = text.replace(token, "hf_***")
    return _SECRET.sub("hf_***", _ADDRESS.sub(r"\1\2", text))


def hide(token: str) -> None:
    """Masks a token in all messages of this process from now on, whatever it looks like."""
    _hidden.add(token)


def shown(text: object) -> str:
    r"""Text as it may be shown on one line: what does not print is escaped, as in ``\n``, ``\x1b`` and ``\u202e``.

    Names of files and repositories and messages of libraries come from anywhere. Control characters would move the
    cursor, and format characters would turn the reading direction.
    """
    line = str(text)
    if line.isprintable():
        return line
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in line)


def add_note(error: BaseException, note: str) -> None:
    """Adds to an exception what the user should know besides. The command line prints it on the same line."""
    error.__notes__ = [*notes_of(error), note]  # type: ignore[attr-defined]  # Python 3.10 has no `add_note`


def notes_of(error: BaseException) -> list[str]:
    """What `add_note` added."""
    return list(getattr(error, "__notes__", ()))
