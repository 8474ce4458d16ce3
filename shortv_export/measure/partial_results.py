"""Keeps the results of finished samples beside the output, so that an interrupted run resumes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

from ..errors import ShortVError, add_note
from ..files import lock, open_regular

logger = logging.getLogger(__name__)

_LONGEST_LINE = 16 << 20  # bytes
Values = dict[str, Any]


class PartialResults:
    """Results of finished samples, in memory and as JSON lines in ``<output>.partial.jsonl``.

    Each process appends to its own file and reads the files of all, so the number of processes may change between
    runs. A result is found by the sample's digest and the name of what was measured. A line that this class has not
    written, whole and unchanged, is left out with a warning: each line has a checksum.

    Args:
        output: file of the final result; None keeps nothing on disk.
        settings: digest of everything else that results depend on. Lines with other settings are ignored.
        process: number of this process.
        is_valid: whether values are what is measured; others are left out like damaged lines.

    Raises:
        ShortVError: another run writes the same output, or its file cannot be used.
    """

    def __init__(
        self,
        output: Path | None,
        settings: str,
        process: int = 0,
        *,
        is_valid: Callable[[Values], bool] = lambda _: True,
    ) -> None:
        self.settings = settings
        self.output = output
        self.is_valid = is_valid
        self.values: dict[tuple[str, str], Values] = {}
        self.path: Path | None = None
        self._file: FileIO | None = None  # open, and locked, while there are results to add
        if output is not None:
            self.path = output.with_name(f"{output.name}.partial{f'-{process}' if process else ''}.jsonl")
            if os.path.lexists(self.path):
                self._open(self.path).close()
            for path in self._files():
                self._read(path)

    def get(self, sample: str, what: str) -> Values | None:
        """Returns a result; None if there is none yet."""
        return self.values.get((sample, what))

    def add(self, sample: str, what: str, values: Values) -> None:
        """Keeps a result.

        Raises:
            ShortVError: it cannot be written, or another run writes the same output.
        """
        if self.path is not None:
            self._write(self.path, {"settings": self.settings, "sample": sample, "what": what, "values": values})
        self.values[sample, what] = values

    def _write(self, path: Path, record: dict[str, Any]) -> None:
        if self._file is None:
            self._file = self._open(path)
        # The file may end in half a line of an interrupted run.
        line = f"\n{json.dumps({**record, 'sha256': _checksum(record)})}\n".encode()
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise ShortVError(f"cannot write {path}: {error.strerror}.") from None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Adds to an exception that leaves the context that samples are kept, and lets another run go on from them."""
        try:
            yield
        except BaseException as error:
            self._close()
            if self.path is not None and (number := len({sample for sample, _ in self.values})):
                add_note(error, f"{number} samples are kept, run the same command to go on")
            raise

    def delete(self) -> None:
        """Deletes all partial files, including those of other processes."""
        for path in self._files():
            with suppress(OSError):  # what stays is read again by a run with the same settings, and by no other
                path.unlink()
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _files(self) -> list[Path]:
        """The partial files of all processes. Whatever else has such a name is not ours."""
        if self.output is None:
            return []
        name = re.compile(rf"{re.escape(self.output.name)}\.partial(-\d+)?\.jsonl", re.ASCII)
        with suppress(OSError), os.scandir(self.output.parent) as entries:
            found = [entry.name for entry in entries if name.fullmatch(entry.name)]
            paths = [self.output.with_name(each) for each in sorted(found)]
            return [path for path in paths if stat.S_ISREG(path.lstat().st_mode)]
        return []

    def _open(self, path: Path) -> FileIO:
        """Opens this process's file to append to, and locks it until it is closed.

        Two runs would measure each sample twice, and one would delete what the other has kept.
        """
        advice = "remove it, or name another `output`"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"):  # a link or a pipe may have taken its place
                flags |= getattr(os, name, 0)
            while True:
                if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
                    raise ShortVError(f"{path}, for finished samples, is not a regular file; {advice}.")
                file = FileIO(os.open(path, flags, 0o644), "ab")
                if lock(file.fileno()) is False:
                    file.close()
                    raise ShortVError(f"another run writes {self.output}; wait for it, or name another `output`.")
                if os.path.lexists(path) and os.path.samestat(os.fstat(file.fileno()), path.lstat()):
                    return file
                file.close()  # a run that has just ended has deleted it
        except OSError as error:
            raise ShortVError(f"cannot write {path}: {error.strerror}; {advice}.") from None

    def _read(self, path: Path) -> None:
        unreadable = 0
        try:
            with open_regular(path) as file:
                while line := file.readline(_LONGEST_LINE):
                    unreadable += bool(line.strip()) and not self._take(line)
        except (ShortVError, OSError) as error:
            logger.warning("%s is not read, so its samples are measured again: %s", path, error)
        if unreadable:
            logger.warning("%s: %d damaged lines are left out; their samples are measured again", path, unreadable)

    def _take(self, line: bytes) -> bool:
        """Takes over the result in a line; returns False for a damaged line."""
        try:
            record = json.loads(line)
            if record.pop("sha256") != _checksum(record):
                return False
            if record["settings"] == self.settings:
                if not self.is_valid(record["values"]):
                    return False
                self.values[record["sample"], record["what"]] = record["values"]
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return False
        return True


def _checksum(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()
