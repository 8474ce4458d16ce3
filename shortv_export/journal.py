"""What an interrupted push has finished, beside its package: the same command goes on from there.

``OUT.push.json`` is written before the first step and deleted after the last. It says what was asked for; another
command does not go on from it. A step is finished if its file is still the one that the step wrote.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

from .base import BaseModel
from .errors import ShortVError, add_note, notes_of
from .files import file_sha256, read_json, write_json
from .options import Conversion
from .records import library_versions


class Journal:
    """The steps of one push from a base.

    Args:
        path: of the journal.
        asked: a digest of what was asked for (see `asked_for`).
    """

    def __init__(self, path: Path, asked: str) -> None:
        self.path = path
        self.asked = asked
        self.steps: dict[str, str] = {}
        with suppress(ShortVError):  # missing or damaged: nothing is finished
            found = read_json(path)
            if isinstance(found, dict) and found.get("asked") == asked and isinstance(found.get("steps"), dict):
                self.steps = {str(step): str(sha256) for step, sha256 in found["steps"].items()}

    def began(self, step: str) -> bool:
        """Whether a step was begun, and perhaps finished."""
        return step in self.steps

    def finished(self, step: str, file: Path) -> bool:
        """Whether a step was finished, and its file is still what it wrote."""
        return bool(self.steps.get(step)) and file.is_file() and file_sha256(file) == self.steps[step]

    def begin(self, step: str) -> None:
        """Notes that a step begins."""
        self._note(step, "")

    def finish(self, step: str, file: Path) -> None:
        """Notes that a step is finished, and what its file holds."""
        self._note(step, file_sha256(file))

    def _note(self, step: str, sha256: str) -> None:
        self.steps[step] = sha256
        write_json(self.path, {"asked": self.asked, "steps": self.steps})

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Adds to an exception that leaves the context that the same command goes on from the finished steps."""
        try:
            yield
        except BaseException as error:
            finished = [step for step, sha256 in self.steps.items() if sha256]
            if finished and not notes_of(error):
                add_note(error, f"finished: {', '.join(finished)}; run the same command to go on")
            raise

    def delete(self) -> None:
        """Deletes the journal."""
        self.path.unlink(missing_ok=True)


def asked_for(base: BaseModel, conversion: Conversion) -> str:
    """A digest of everything that a package depends on. Where it is computed is left out."""
    given = asdict(replace(conversion, placement=replace(conversion.placement, device_map=None, max_memory=None)))
    scores = conversion.choice.scores
    read = file_sha256(Path(scores)) if scores else None
    what = [base.name, *base.state, given, read, library_versions()]
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()
