"""The exceptions that users see."""

from __future__ import annotations


class ShortVError(Exception):
    """Something the user can act on: one line that says what is wrong and what to do.

    The command line prints it and exits with status 1. Any other exception is a bug.
    """


class UnavailableError(ShortVError):
    """Something on the Hub that cannot be had now: no network, no access, or it is gone."""


class UsageError(ShortVError):
    """Options that do not go together. The command line exits with status 2."""


def one_line(error: BaseException) -> str:
    """What an exception of a library says, in one line of at most 300 characters, to end a `ShortVError` with."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:299] + "…"
