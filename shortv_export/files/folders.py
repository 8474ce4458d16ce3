"""Folders that appear whole or not at all, and files that are linked or copied into them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import ShortVError
from .hashing import file_sha256


@contextmanager
def becoming(out: Path) -> Iterator[Path]:
    """A hidden sibling of `out` to write into: it becomes `out` at the end, or vanishes if anything fails."""
    new_parents = [parent for parent in out.parents if not parent.exists()]
    folder = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        yield folder
        folder.chmod(0o755)  # mkdtemp makes private folders
        os.replace(folder, out)
    except OSError as error:
        raise ShortVError(f"cannot write {out}: {error.strerror or error}.") from None
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
        for parent in new_parents:
            with suppress(OSError):  # not empty: it holds the package
                parent.rmdir()


def carry(source: Path, target: Path, sha256: str) -> None:
    """Puts a file of the base into the package: weights as a hard link if possible, the rest as a copy."""
    # In a Hub cache the files are links to blobs: link the blob, not the link.
    source = Path(os.path.realpath(source))
    if target.suffix == ".safetensors":
        with suppress(OSError):  # another device, or a file system without links
            os.link(source, target)
            return
    shutil.copyfile(source, target)
    if file_sha256(target) != sha256:
        raise ShortVError(f"the copy of {target.name} differs from the base's file; run the command again.")
