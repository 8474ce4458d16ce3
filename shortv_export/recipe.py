"""The values that travel between steps, and their files: ``scores.json`` and ``shortv.json``.

Each step of the tool returns one of these frozen dataclasses; each can be saved, read back and continued from.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .errors import ShortVError

RECIPE_NAME = "shortv.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
FORMAT = 1
# Where a package's weights are: in it, or in the base's repository.
WEIGHTS = ("copy", "reference")

_MAX_JSON_BYTES = 64 * 1024 * 1024
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)?", re.ASCII)
_CLASS_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_FILE_NAME = re.compile(r"[\w-][\w.-]*", re.ASCII)  # flat, and not hidden
_MEASURED_FILE = re.compile(r"evaluation\.json|[\w-]+\.png|\.eval_results/[\w-][\w.-]*\.yaml", re.ASCII)


@dataclass(frozen=True)
class Scores:
    """One Layer Contribution per decoder layer (paper, Eq. 2), and where it was measured.

    Attributes:
        visual: LC of the visual tokens, in nats; what layers are selected by.
        text: LC of the text tokens, in nats (Fig. 3); for comparison only.
        visual_standard_error: of each mean in `visual`; all zero for a single sample.
        num_samples: how many samples the means are over.
        visual_samples: LC of the visual tokens of each sample, ``(num_samples, layers)``; empty if it was not kept.
        visual_cosine_distance: 1 - cosine similarity of the visual hidden states before and after each layer; empty
            if it was not measured. For comparison only.
        divergence: the direction, ``"kl(original||ablated)"``.
        until_stable: for samples that were added in rounds, ``{"num_frozen", "rounds", "stable"}``: the number of
            layers meant, of samples after each round, and whether the selected layers stopped changing.
        calibration: which samples (see `calibration.Calibration.record`).
        base: which base (see `BaseRecord`): repo id or folder, and revision.
        versions: of the libraries that measured.
    """

    visual: tuple[float, ...]
    text: tuple[float, ...]
    visual_standard_error: tuple[float, ...]
    num_samples: int
    visual_samples: tuple[tuple[float, ...], ...] = ()
    visual_cosine_distance: tuple[float, ...] = ()
    divergence: str = "kl(original||ablated)"
    until_stable: dict[str, Any] | None = None
    calibration: dict[str, Any] = field(default_factory=dict)
    base: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.visual) == len(self.text) == len(self.visual_standard_error) or not self.visual:
            raise ShortVError("scores must hold one visual, text and standard-error value per layer.")
        if not all(isinstance(value, dict) for value in (self.calibration, self.base, self.versions)):
            raise ShortVError("scores must say where they come from: calibration, base and versions are objects.")
        if not (self.until_stable is None or isinstance(self.until_stable, dict)):
            raise ShortVError("scores must say how samples were added: until_stable is an object or null.")
        per_layer = (*self.visual_samples, *filter(None, [self.visual_cosine_distance]))
        if len(self.visual_samples) not in (0, self.num_samples) or {*map(len, per_layer)} - {len(self.visual)}:
            raise ShortVError(
                "scores must hold one value per layer for each sample, and one cosine distance per layer."
            )
        for values in (self.visual, self.text, self.visual_standard_error, *per_layer):
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
            values["visual_samples"] = tuple(map(tuple, data.get("visual_samples", ())))
            values["visual_cosine_distance"] = tuple(data.get("visual_cosine_distance", ()))
            optional = ("divergence", "until_stable", "calibration", "base", "versions")
            rest = {key: data[key] for key in optional if key in data}
            return cls(**values, num_samples=int(data["num_samples"]), **rest)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ShortVError(
                f"{name} is not a scores file: {error!r}; write one with `shortv-export score`."
            ) from None


@dataclass(frozen=True)
class Selection:
    """Which layers are frozen, and why.

    Attributes:
        frozen_layers: sorted layer numbers.
        num_layers: of the language model.
        method: ``"lc"`` (lowest Layer Contribution), ``"cosine"`` (lowest cosine distance), ``"random"``, ``"preset"``
            (the paper's Table 8) or ``"given"``.
        budget: what asked for this many, such as ``{"num_frozen": 19}``, and the seed of a random choice.
        source: for a preset, what to cite.
        evidence: what the choice rests on besides scores: ``"boundary"`` (a `statistics.Boundary`), ``"probes"`` (of
            a bound on the divergence: ``{"num_frozen", "kl", "standard_error"}`` each) and ``"held_out"`` (the samples
            that these were measured on; see `calibration.Calibration.record`).
    """

    frozen_layers: tuple[int, ...]
    num_layers: int
    method: str
    budget: dict[str, Any] = field(default_factory=dict)
    source: str | None = None
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BaseRecord:
    """A base, pinned: enough to find it again and to know that it is the same.

    Attributes:
        repo_id: on the Hub; None for a local folder (whose path is nobody else's business).
        revision: the commit; None for a local folder.
        config_sha256: of its ``config.json``.
        files: name to ``{"sha256", "size"}`` of its weights and of every file that the package carries unchanged.
    """

    repo_id: str | None
    revision: str | None
    config_sha256: str
    files: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Recipe:
    """``shortv.json``: everything that decides what a package is, so that the hash of this file pins all of it.

    Attributes:
        base: the base.
        family: its row in `families.FAMILIES`.
        num_layers: decoder layers.
        frozen_layers: sorted layer numbers.
        weights: ``"copy"``, or ``"reference"`` where the package has none and loads the base's.
        selection: a `Selection`, as an object.
        scores: a `Scores`, as an object, if the selection rests on one.
        cost: ``{"text_tokens", "visual_tokens", "flops_ratio"}``.
        card: what the card inherits (see `card.Inherited`), and ``template``, the sha256 of what renders it.
        figure: sha256 of the card's figure, if there are scores.
        code: sha256 of each remote-code file.
        versions: of the libraries that made the package.
        tokenizer_class: ``{"base", "package"}``, the class that the ``tokenizer_config.json`` of each names, where
            they differ (see `tokenizer`); else None.
        measured: sha256 of each file that an evaluation of the package added to it (see `eval_results`); empty if it
            was not evaluated.
    """

    base: BaseRecord
    family: str
    num_layers: int
    frozen_layers: tuple[int, ...]
    weights: str
    selection: dict[str, Any]
    scores: dict[str, Any] | None
    cost: dict[str, Any]
    card: dict[str, Any]
    figure: str | None
    code: dict[str, str]
    versions: dict[str, str]
    tokenizer_class: dict[str, str | None] | None = None
    measured: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def sha256(self) -> str:
        """What an evaluation calls the package that it measured: the hash of its recipe, evaluated or not."""
        return hashlib.sha256(json_text(replace(self, measured={}).to_dict()).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of ``shortv.json``."""
        return asdict(self)

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Reads a ``shortv.json``, which may come from anywhere: what it holds has the types that are declared here,
        and its file names are plain ones.

        Raises:
            ShortVError: the file is missing, no JSON, of another format, or not what this class writes.
        """
        data = read_json(path)
        if not isinstance(data, dict) or "format" not in data:
            raise ShortVError(f"{path} is not a ShortV recipe.")
        if data["format"] != FORMAT:
            raise ShortVError(f"{path} has format {data['format']!r:.40}; this release reads format {FORMAT}.")
        if unknown := data.keys() - {*_RECIPE_FIELDS, "format"}:
            raise ShortVError(f"{path} is not a ShortV recipe: it has a field {min(unknown)!r:.40}.")
        for name, is_right in _RECIPE_FIELDS.items():
            try:
                right = is_right(data[name])
            except (LookupError, TypeError, AttributeError, OverflowError, ShortVError):
                right = False
            if not right:
                raise ShortVError(f"{path} is not a ShortV recipe: its {name} is missing, or not what belongs there.")
        if data["tokenizer_class"] and TOKENIZER_CONFIG_NAME not in data["base"]["files"]:
            raise ShortVError(f"{path} names a tokenizer class of a base without {TOKENIZER_CONFIG_NAME}.")
        fields = {name: data[name] for name in _RECIPE_FIELDS}
        fields |= {"base": BaseRecord(**data["base"]), "frozen_layers": tuple(data["frozen_layers"])}
        return cls(**fields)


def _is_base(value: Any) -> bool:
    files = value["files"].items()
    return (
        value.keys() == {"repo_id", "revision", "config_sha256", "files"}
        and (value["repo_id"] is None or bool(_HUB_ID.fullmatch(value["repo_id"])))
        and (value["revision"] is None or bool(_COMMIT.fullmatch(value["revision"])))
        and bool(_SHA256.fullmatch(value["config_sha256"]))
        and all(_FILE_NAME.fullmatch(name) and _is_file(entry) for name, entry in files)
    )


def _is_file(value: Any) -> bool:
    return value.keys() == {"sha256", "size"} and bool(_SHA256.fullmatch(value["sha256"])) and _is_count(value["size"])


def _is_selection(value: Any) -> bool:
    return (
        value.keys() == {"frozen_layers", "num_layers", "method", "budget", "source", "evidence"}
        and _is_layers(value["frozen_layers"])
        and _is_count(value["num_layers"])
        and isinstance(value["method"], str)
        and all(_is_number(number) for number in value["budget"].values())
        and all(1 <= value["budget"].get(name, 1) <= 1e9 for name in ("text_tokens", "visual_tokens"))
        and (value["source"] is None or isinstance(value["source"], str))
        and value["evidence"].keys() <= {"boundary", "probes", "held_out"}
        and isinstance(value["evidence"].get("boundary", {}), dict)
        and isinstance(value["evidence"].get("held_out", {}), dict)
        and all(map(_is_probe, value["evidence"].get("probes", [])))
    )


def _is_probe(value: Any) -> bool:
    return value.keys() == {"num_frozen", "kl", "standard_error"} and all(map(_is_number, value.values()))


def _is_scores(value: Any) -> bool:
    return value is None or bool(Scores.from_dict(value, RECIPE_NAME))


def _is_layers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_count, value))


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_texts(value: Any) -> bool:
    return all(isinstance(text, str) for text in value.values())


# What each field of a recipe must be; on a value of another type, these may also raise.
_RECIPE_FIELDS: dict[str, Callable[[Any], bool]] = {
    "base": _is_base,
    "family": lambda value: isinstance(value, str),
    "num_layers": _is_count,
    "frozen_layers": _is_layers,
    "weights": lambda value: value in WEIGHTS,
    "selection": _is_selection,
    "scores": _is_scores,
    "cost": lambda value: (
        value.keys() == {"text_tokens", "visual_tokens", "flops_ratio"} and all(map(_is_number, value.values()))
    ),
    "card": lambda value: isinstance(value, dict),
    "figure": lambda value: value is None or bool(_SHA256.fullmatch(value)),
    "code": lambda value: (
        all(_FILE_NAME.fullmatch(name) for name in value)
        and all(_SHA256.fullmatch(sha256) for sha256 in value.values())
    ),
    "versions": lambda value: _is_texts(value) and {"shortv-export", "transformers"} <= value.keys(),
    "tokenizer_class": lambda value: (
        value is None
        or (
            value.keys() == {"base", "package"}
            and bool(_CLASS_NAME.fullmatch(value["package"]))
            and (value["base"] is None or bool(_CLASS_NAME.fullmatch(value["base"])))
        )
    ),
    "measured": lambda value: (
        all(_MEASURED_FILE.fullmatch(name) for name in value)
        and all(_SHA256.fullmatch(sha256) for sha256 in value.values())
    ),
}


def library_versions(*more: str) -> dict[str, str]:
    """The versions that a measurement or a package depends on, and those of `more` distributions."""
    return {name: version(name) for name in ("shortv-export", "transformers", "torch", "huggingface-hub", *more)}


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
        ShortVError: the folder cannot be written, or the text holds half of a surrogate pair, as JSON can.
    """
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise ShortVError(f"cannot write {path}: its text is not valid Unicode.") from None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise ShortVError(f"cannot write {path}: {error.strerror}.") from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
