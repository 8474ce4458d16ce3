"""``shortv.json``: everything that decides what a package is."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..errors import ShortVError
from ..files import json_text, read_json
from .frozen import Frozen
from .validation import validated

FORMAT = 1
MOST_NAMES = 100
"""How many names of what is left out a recipe tells."""


def library_versions(*more: str) -> dict[str, str]:
    """The installed versions of the libraries that results depend on, and of the distributions in `more`."""
    return {name: version(name) for name in ("shortv-export", "transformers", "torch", "huggingface-hub", *more)}


@dataclass(frozen=True)
class BaseRecord:
    """The base of a package, with hashes to check another copy of it.

    Attributes:
        repo_id: on the Hub; None for a local folder, whose path stays private.
        revision: the commit; None for a local folder.
        config_sha256: of its ``config.json``.
        files: name -> ``{"sha256", "size"}`` of its weights and of every small file that the package takes over.
        left_out: what else the base holds: ``{"number", "names"}``, with at most `MOST_NAMES` names; a folder's name
            ends with ``/``. None if it is not known, as without network for a base that is new to this tool.
    """

    repo_id: str | None
    revision: str | None
    config_sha256: str
    files: dict[str, dict[str, Any]]
    left_out: dict[str, Any] | None = None


@dataclass(frozen=True)
class Recipe:
    """``shortv.json``: everything that decides the bytes of a package. The hash of this file pins all of them.

    Attributes:
        base: the base.
        family: the base's ``model_type``, a key of `base.FAMILIES`.
        num_layers: number of decoder layers.
        frozen_layers: sorted numbers of the layers that freeze both operators.
        weights: one of `WEIGHTS`.
        selection: a `Selection`, as a JSON object.
        scores: the `Scores` that the layers were selected by, as a JSON object; None without scores.
        cost: ``{"text_tokens", "visual_tokens", "flops_ratio"}``.
        card: metadata from the base's card, and as ``"template"`` the sha256 of the card's template.
        figure: sha256 of the card's figure of the scores; None without scores.
        code: name -> sha256 of each remote-code file.
        versions: the versions of the libraries that made the package.
        derived: file name -> field -> ``{"base", "package"}``: classes that transformers gives the base by its model
            type, and that the package names. Other files of the base are taken over bit for bit. Without ``"base"``,
            the base's file lacks the field. ``image_processor.image_processor_type`` is a field within a field.
        measured: name -> sha256 of each file that an evaluation added to the package.
        frozen_attention, frozen_ffn: sorted numbers of the layers that freeze a single operator; not in the file if
            they are empty.
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
    derived: dict[str, dict[str, dict[str, str | None]]] = field(default_factory=dict)
    measured: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT
    frozen_attention: tuple[int, ...] = ()
    frozen_ffn: tuple[int, ...] = ()

    @property
    def frozen(self) -> Frozen:
        """The three lists."""
        return Frozen(self.frozen_layers, self.frozen_attention, self.frozen_ffn)

    @property
    def sha256(self) -> str:
        """The hash of the recipe without `measured`; an evaluation names the package that it measured by it."""
        return hashlib.sha256(json_text(replace(self, measured={}).to_dict()).encode()).hexdigest()

    @property
    def tag(self) -> str:
        """The package's tag on the Hub, named after the hash of ``shortv.json``: a card cannot name its own commit."""
        return f"shortv-{hashlib.sha256(json_text(self.to_dict()).encode()).hexdigest()[:12]}"

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of ``shortv.json``."""
        fields = asdict(self)
        for name, layers in self.frozen.lists.items():
            if not layers and name != "frozen_layers":
                del fields[name]
        return fields

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Reads a ``shortv.json``. It is untrusted: all types, hashes and file names are checked.

        Raises:
            ShortVError: the file is missing, not JSON, of another format, or not a valid recipe.
        """
        from .recipe_schema import RecipeSchema

        data = read_json(path)
        if not isinstance(data, dict) or "format" not in data:
            raise ShortVError(f"{path} is not a ShortV recipe.")
        if data["format"] != FORMAT:
            raise ShortVError(f"{path} has format {data['format']!r:.40}; this release reads format {FORMAT}.")
        validated(RecipeSchema, data, f"{path} is not a ShortV recipe")
        # The values stay as they were read, not as pydantic converts them, so that writing gives the same bytes.
        lists = {name: tuple(data[name]) for name in Frozen().lists if name in data}
        return cls(**(data | lists | {"base": BaseRecord(**data["base"])}))
