"""Samples that are done, one JSON line each beside the output, so that an interrupted run goes on from there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import ShortVError


class FinishedSamples:
    """What was measured on each sample so far: in memory, and in ``<output>.partial.jsonl``.

    Args:
        output: the file that the result will go to; None keeps nothing on disk.
        settings: a digest of all that a value depends on besides its key; lines of other settings are not used.
    """

    def __init__(self, output: Path | None, settings: str) -> None:
        self.settings = settings
        self.values: dict[tuple[str, str], dict[str, Any]] = {}
        self.path = output.with_name(f"{output.name}.partial.jsonl") if output is not None else None
        if self.path is not None and self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
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
        """Once the result is written."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
