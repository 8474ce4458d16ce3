"""``scores.json``: the Layer Contributions of a base."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ShortVError
from ..files import read_json, write_json
from .validation import STRICT, validated


@dataclass(frozen=True)
class Scores:
    """One Layer Contribution per decoder layer (paper, Eq. 2), and where it was measured.

    Attributes:
        visual: LC of the visual tokens, in nats; what layers are selected by.
        text: LC of the text tokens, in nats (Fig. 3); for comparison only.
        visual_standard_error: of each mean in `visual`; all zero for a single sample.
        num_samples: number of samples that the means are over.
        visual_samples: LC of the visual tokens of each sample, ``(num_samples, layers)``; empty if it was not kept.
        visual_cosine_distance: 1 - cosine similarity of the visual hidden states before and after each layer; empty
            if it was not measured. For comparison only.
        divergence: the direction, ``"kl(original||ablated)"``.
        until_stable: ``{"num_frozen", "rounds", "stable"}`` if samples were added in rounds: the number of layers to
            select, the number of samples after each round, and whether the selected layers stopped changing.
        calibration: which samples (see `DrawnSamples.record`).
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

    __pydantic_config__ = STRICT | {"extra": "ignore"}  # such as the fields of a later release

    def __post_init__(self) -> None:
        per_layer = [self.visual, self.text, self.visual_standard_error, *self.visual_samples]
        per_layer += filter(None, [self.visual_cosine_distance])
        if not self.visual or {*map(len, per_layer)} != {len(self.visual)}:
            raise ShortVError("scores must hold one value of each kind per layer.")
        if len(self.visual_samples) not in (0, self.num_samples):
            raise ShortVError("scores must hold the values of each of the `num_samples` samples, or of none.")
        if not all(
            isinstance(value, int | float) and math.isfinite(value) for values in per_layer for value in values
        ):
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
        """The scores in a parsed JSON object; `name` is where it came from, for messages.

        Raises:
            ShortVError: it holds anything else.
        """
        return validated(cls, data, f"{name} is not a scores file", "write one with `shortv-export score`")
