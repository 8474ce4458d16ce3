"""The exceptions that users see."""

from __future__ import annotations


class ShortVError(Exception):
    """Something the user can act on: one line that says what is wrong and what to do.

    The command line prints it and exits with status 1. Any other exception is a bug.
    """


class UsageError(ShortVError):
    """Options that do not go together. The command line exits with status 2."""


def one_line(error: BaseException) -> str:
    """What an exception of a library says, in one line of at most 300 characters, to end a `ShortVError` with."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:299] + "…"


def shown(text: object) -> str:
    r"""Text as it may be shown on one line: what does not print is escaped, as in ``\n``, ``\x1b`` and ``\u202e``.

    Names of files and repositories and messages of libraries come from anywhere. Control characters would move the
    cursor, and format characters would turn the reading direction.
    """
    line = str(text)
    if line.isprintable():
        return line
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in line)
