"""The one exception that users see."""

from __future__ import annotations


class ShortVError(Exception):
    """Something the user can act on, told in one line: what is wrong, and what to do.

    The command line prints it and exits with status 1; everything else is a bug and keeps its traceback.
    """


def one_line(error: BaseException) -> str:
    """What a library's exception says, in one line of at most 300 characters, to end a `ShortVError` with."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:299] + "…"
