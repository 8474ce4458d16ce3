"""The values that travel between steps, and their files: ``scores.json`` and ``shortv.json``.

Each step of the tool returns one of these frozen dataclasses; each can be saved, read back and continued from.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .errors import ShortVError

RECIPE_NAME = "shortv.json"
FORMAT = 1

_MAX_JSON_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Scores:
    """One Layer Contribution per decoder layer (paper, Eq. 2), and where it was measured.

    Attributes:
        visual: LC of the visual tokens, in nats; what layers are selected by.
        text: LC of the text tokens, in nats (Fig. 3); for comparison only.
        visual_standard_error: of each mean in `visual`; all zero for a single sample.
        divergence: the direction, ``"kl(original||ablated)"``.
        num_samples: how many samples the means are over.
        calibration: which samples (see `calibration.Calibration.record`).
        base: which base (see `BaseRecord`): repo id or folder, and revision.
        versions: of the libraries that measured.
    """

    visual: tuple[float, ...]
    text: tuple[float, ...]
    visual_standard_error: tuple[float, ...]
    num_samples: int
    divergence: str = "kl(original||ablated)"
    calibration: dict[str, Any] = field(default_factory=dict)
    base: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.visual) == len(self.text) == len(self.visual_standard_error) or not self.visual:
            raise ShortVError("scores must hold one visual, text and standard-error value per layer.")
        if not all(isinstance(value, dict) for value in (self.calibration, self.base, self.versions)):
            raise ShortVError("scores must say where they come from: calibration, base and versions are objects.")
        for values in (self.visual, self.text, self.visual_standard_error):
            if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
                raise ShortVError("scores must be finite numbers; measure them again with `shortv-export score`.")

    def save(self, path: Path) -> None:
        """Writes ``scores.json``, whole or not at all."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Scores:
        """Reads a ``scores.json``.

        Raises:
            ShortVError: the file is missing, no JSON, or not what `save` writes.
        """
        return cls.from_dict(read_json(path), str(path))

    @classmethod
    def from_dict(cls, data: Any, name: str) -> Scores:
        """The scores in a parsed JSON object; `name` is where it came from, for messages."""
        try:
            values: dict[str, Any] = {key: tuple(data[key]) for key in ("visual", "text", "visual_standard_error")}
            rest = {key: data[key] for key in ("divergence", "calibration", "base", "versions") if key in data}
            return cls(**values, num_samples=int(data["num_samples"]), **rest)
        except (KeyError, TypeError, ValueError) as error:
            raise ShortVError(
                f"{name} is not a scores file: {error!r}; write one with `shortv-export score`."
            ) from None


@dataclass(frozen=True)
class Selection:
    """Which layers are frozen, and why.

    Attributes:
        frozen_layers: sorted layer numbers.
        num_layers: of the language model.
        method: ``"lc"`` (lowest Layer Contribution), ``"preset"`` (the paper's Table 8) or ``"given"``.
        budget: what asked for this many, such as ``{"num_frozen": 19}``.
        source: for a preset, what to cite.
    """

    frozen_layers: tuple[int, ...]
    num_layers: int
    method: str
    budget: dict[str, Any] = field(default_factory=dict)
    source: str | None = None


@dataclass(frozen=True)
class BaseRecord:
    """A base, pinned: enough to find it again and to know that it is the same.

    Attributes:
        repo_id: on the Hub; None for a local folder (whose path is nobody else's business).
        revision: the commit; None for a local folder.
        files: name to ``{"sha256", "size"}`` of every file that the package carries unchanged.
    """

    repo_id: str | None
    revision: str | None
    files: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Recipe:
    """``shortv.json``: everything that decides what a package is.

    `cost` is ``{"text_tokens", "visual_tokens", "flops_ratio"}``; `code` maps each remote-code file to its sha256.
    """

    base: BaseRecord
    family: str
    num_layers: int
    frozen_layers: tuple[int, ...]
    selection: dict[str, Any]
    scores: dict[str, Any] | None
    cost: dict[str, Any]
    code: dict[str, str]
    versions: dict[str, str]
    format: int = FORMAT

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of ``shortv.json``."""
        return asdict(self)

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Reads a ``shortv.json``.

        Raises:
            ShortVError: the file is missing, no JSON, of another format, or incomplete.
        """
        data = read_json(path)
        try:
            if data["format"] != FORMAT:
                raise ShortVError(f"{path} has format {data['format']!r}; this release reads format {FORMAT}.")
            base = BaseRecord(**data["base"])
            names = ("family", "num_layers", "selection", "scores", "cost", "code", "versions")
            return cls(base=base, frozen_layers=tuple(data["frozen_layers"]), **{name: data[name] for name in names})
        except (KeyError, TypeError) as error:
            raise ShortVError(f"{path} is not a ShortV recipe: {error!r}.") from None


def library_versions() -> dict[str, str]:
    """The versions that a measurement or a package depends on."""
    return {name: version(name) for name in ("shortv-export", "transformers", "torch", "huggingface-hub")}


def read_json(path: Path) -> Any:
    """Parses a JSON file of bounded size.

    Raises:
        ShortVError: missing, unreadable, larger than 64 MiB, or not JSON.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ShortVError(f"{path} is larger than {_MAX_JSON_BYTES >> 20} MiB, which no file of its kind is.")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ShortVError(f"{path} does not exist.") from None
    except OSError as error:
        raise ShortVError(f"cannot read {path}: {error.strerror}.") from None
    except (ValueError, RecursionError):
        raise ShortVError(f"{path} is not valid JSON.") from None


def json_text(value: Any) -> str:
    """JSON as every file of this tool is written: indented, key order as given, no NaN."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Writes JSON beside the target and renames it, so that a reader never sees half a file."""
    write_text(path, json_text(value))


def write_text(path: Path, text: str) -> None:
    """Writes text beside the target and renames it.

    Raises:
        ShortVError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise ShortVError(f"cannot write {path}: {error.strerror}.") from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
