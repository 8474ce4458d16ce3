"""Keeps the results of finished samples beside the output, so that an interrupted run resumes."""

from __future__ import annotations

import glob
import json
from pathlib import Path
from typing import Any

from ..errors import ShortVError


class PartialResults:
    """Results of finished samples, in memory and as JSON lines in ``<output>.partial.jsonl``.

    Each process appends to its own file and reads the files of all, so the number of processes may change between
    runs. A result is found by the sample's digest and the name of what was measured.

    Args:
        output: file of the final result; None keeps nothing on disk.
        settings: digest of everything else that results depend on. Lines with other settings are ignored.
        process: number of this process.
    """

    def __init__(self, output: Path | None, settings: str, process: int = 0) -> None:
        self.settings = settings
        self.output = output
        self.values: dict[tuple[str, str], dict[str, Any]] = {}
        self.path: Path | None = None
        if output is not None:
            self.path = output.with_name(f"{output.name}.partial{f'-{process}' if process else ''}.jsonl")
            for path in self._files():
                for line in path.read_text(encoding="utf-8").splitlines():
                    self._read(line)

    def _read(self, line: str) -> None:
        try:
            record = json.loads(line)
        except ValueError:  # an interrupted run may have written half a line
            return
        if record.get("settings") == self.settings:
            self.values[record["sample"], record["what"]] = record["values"]

    def get(self, sample: str, what: str) -> dict[str, Any] | None:
        """Returns a result; None if there is none yet."""
        return self.values.get((sample, what))

    def add(self, sample: str, what: str, values: dict[str, Any]) -> None:
        """Keeps a result.

        Raises:
            ShortVError: it cannot be written.
        """
        self.values[sample, what] = values
        if self.path is None:
            return
        record = {"settings": self.settings, "sample": sample, "what": what, "values": values}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                # The file may end in half a line of an interrupted run.
                file.write(f"\n{json.dumps(record)}\n")
        except OSError as error:
            raise ShortVError(f"cannot write {self.path}: {error.strerror}.") from None

    def delete(self) -> None:
        """Deletes all partial files, including those of other processes."""
        for path in self._files():
            path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        if self.output is None:
            return []
        return sorted(self.output.parent.glob(f"{glob.escape(self.output.name)}.partial*.jsonl"))
