"""Samples that are done, one JSON line each beside the output, so that an interrupted run goes on from there."""

from __future__ import annotations

import glob
import json
from pathlib import Path
from typing import Any

from ..errors import ShortVError


class FinishedSamples:
    """What was measured on each sample so far: in memory, and in ``<output>.partial.jsonl``.

    A process appends to its own file and reads all of them, so a run may go on with more or fewer processes.

    Args:
        output: the file that the result will go to; None keeps nothing on disk.
        settings: a digest of all that a value depends on besides its key; lines of other settings are not used.
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
        except ValueError:  # the line that an interrupted run was writing
            return
        if record.get("settings") == self.settings:
            self.values[record["sample"], record["what"]] = record["values"]

    def get(self, sample: str, what: str) -> dict[str, Any] | None:
        """What was measured on the sample with this digest, by the name of the measurement."""
        return self.values.get((sample, what))

    def add(self, sample: str, what: str, values: dict[str, Any]) -> None:
        """Keeps a measurement.

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
                # First an end of line: an interrupted run may have left half a line.
                file.write(f"\n{json.dumps(record)}\n")
        except OSError as error:
            raise ShortVError(f"cannot write {self.path}: {error.strerror}.") from None

    def remove(self) -> None:
        """Once the result is written. Those of an earlier run with more processes, too."""
        for path in self._files():
            path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        if self.output is None:
            return []
        return sorted(self.output.parent.glob(f"{glob.escape(self.output.name)}.partial*.jsonl"))
