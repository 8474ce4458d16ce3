"""``scores.json``: the Layer Contributions of a base."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ShortVError
from ..files import read_json, write_json
from .validation import STRICT, validated

FORWARD = "kl(original||ablated)"
"""Direction of the KL divergence: the paper's Eq. 2."""
REVERSE = "kl(ablated||original)"
"""What the paper's reference code computes."""


@dataclass(frozen=True)
class Scores:
    """The Layer Contribution (LC) of each decoder layer (paper, Eq. 2), as a mean over samples.

    Attributes:
        visual: LC of the visual tokens, in nats; layers are selected by it.
        text: LC of the text tokens, in nats (Fig. 3); for comparison only.
        visual_standard_error: of each mean in `visual`; all zero for a single sample.
        num_samples: number of samples.
        visual_samples: LC of the visual tokens of each sample, ``(num_samples, layers)``; may be empty.
        visual_cosine_distance: 1 - cosine similarity of the visual hidden states before and after each layer, for
            comparison only; may be empty.
        divergence: `FORWARD` or `REVERSE`.
        until_stable: ``{"num_frozen", "rounds", "stable"}`` if samples were added in rounds: the number of layers to
            select, the number of samples after each round, and whether the selected layers stopped changing.
        calibration: the samples (see `DrawnSamples.record`).
        base: ``{"repo_id", "revision"}``, both None for a local folder.
        versions: the versions of the libraries used.
    """

    visual: tuple[float, ...]
    text: tuple[float, ...]
    visual_standard_error: tuple[float, ...]
    num_samples: int
    visual_samples: tuple[tuple[float, ...], ...] = ()
    visual_cosine_distance: tuple[float, ...] = ()
    divergence: str = FORWARD
    until_stable: dict[str, Any] | None = None
    calibration: dict[str, Any] = field(default_factory=dict)
    base: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    __pydantic_config__ = STRICT | {"extra": "ignore"}  # a later release may add fields

    def __post_init__(self) -> None:
        per_layer = [self.visual, self.text, self.visual_standard_error, *self.visual_samples]
        per_layer += filter(None, [self.visual_cosine_distance])
        if not self.visual or {*map(len, per_layer)} != {len(self.visual)}:
            raise ShortVError("scores must hold one value of each kind per layer.")
        if len(self.visual_samples) not in (0, self.num_samples):
            raise ShortVError("scores must hold the values of all samples ('num_samples'), or of none.")
        if not all(
            isinstance(value, int | float) and math.isfinite(value) for values in per_layer for value in values
        ):
            raise ShortVError("scores must be finite numbers.")

    def save(self, path: Path) -> None:
        """Writes ``scores.json``, whole or not at all."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Reads a ``scores.json``.

        Raises:
            ShortVError: the file is missing, not JSON, or not a valid scores file.
        """
        return cls.from_dict(read_json(path), str(path))

    @classmethod
    def from_dict(cls, data: Any, name: str) -> Scores:
        """The scores in parsed JSON; messages call it `name`.

        Raises:
            ShortVError: `data` is not valid.
        """
        return validated(cls, data, f"{name} is not a scores file", "write one with `shortv-export score`")
