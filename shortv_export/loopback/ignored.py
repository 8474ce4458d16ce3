"""Which files a `.gitignore` keeps out of commits."""

from __future__ import annotations

import fnmatch


def is_ignored(path: str, gitignore: str) -> bool:
    """Whether the last line that matches a path excludes it. As on the Hub, only the root's `.gitignore` counts.

    A line with a slash before its end is compared with the whole path, any other with each part of it; `!` takes a
    path back in. Wildcards are those of `fnmatch`: unlike git's, `*` also matches slashes.
    """
    ignored, parts = False, path.split("/")
    for line in map(str.strip, gitignore.splitlines()):
        pattern = line.removeprefix("!").removesuffix("/")
        if not pattern or line.startswith("#"):
            continue
        above = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
        candidates = above if "/" in pattern else parts
        if line.endswith("/"):  # folders only
            candidates = candidates[:-1]
        if any(fnmatch.fnmatchcase(each, pattern.lstrip("/")) for each in candidates):
            ignored = not line.startswith("!")
    return ignored
