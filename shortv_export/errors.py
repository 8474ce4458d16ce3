"""The one exception that users see."""

from __future__ import annotations


class ShortVError(Exception):
    """Something the user can act on, told in one line: what is wrong, and what to do.

    The command line prints it and exits with status 1; everything else is a bug and keeps its traceback.
    """
