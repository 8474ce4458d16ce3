"""``scores.json``: the Layer Contributions of a base."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ShortVError
from ..files import read_json, write_json


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
