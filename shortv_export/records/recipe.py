"""``shortv.json``: everything that decides what a package is."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import ShortVError
from ..files import json_text, read_json
from .file_names import RECIPE_NAME, TOKENIZER_CONFIG_NAME
from .scores import Scores

FORMAT = 1
# Where a package's weights are: in it, or in the base's repository.
WEIGHTS = ("copy", "reference")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)?", re.ASCII)
_CLASS_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_FILE_NAME = re.compile(r"[\w-][\w.-]*", re.ASCII)  # flat, and not hidden
_MEASURED_FILE = re.compile(r"evaluation\.json|[\w-]+\.png|\.eval_results/[\w-][\w.-]*\.yaml", re.ASCII)


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
