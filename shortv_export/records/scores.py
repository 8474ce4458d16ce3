"""``scores.json``: the Layer Contributions of a base."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import ShortVError
from ..files import read_json, write_json
from .validation import STRICT, validated

FORWARD = "kl(original||ablated)"
"""Direction of the KL divergence: the paper's Eq. 2."""
REVERSE = "kl(ablated||original)"
"""What the paper's reference code computes."""


Ablation = Literal["attention", "ffn", "answer_visual", "answer_attention", "answer_ffn"]
"""What was left out for visual tokens (attention alone, the FFN alone, or both as in a frozen layer), and where that
was judged: at the first token of the answer, or at all of its tokens."""


@dataclass(frozen=True)
class Scores:
    """The Layer Contribution (LC) of each decoder layer (paper, Eq. 2), as a mean over samples.

    Attributes:
        visual: LC of the visual tokens, in nats; layers are selected by it.
        text: LC of the text tokens, in nats (Fig. 3); for comparison only; may be empty.
        visual_standard_error: of each mean in `visual`; all zero for a single sample.
        num_samples: number of samples.
        visual_samples: LC of the visual tokens of each sample, ``(num_samples, layers)``; may be empty.
        visual_cosine_distance: 1 - cosine similarity of the visual hidden states before and after each layer, for
            comparison only; may be empty.
        ablations: the KL divergence of each sample for the other ablations, ``(num_samples, layers)`` each, in nats.
            By them single operators are chosen. Empty if they were not measured.
        tokens: for each sample, the numbers of text and of visual tokens of its prompt, and of tokens of the base's
            answer; may be empty.
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
    ablations: dict[Ablation, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    tokens: tuple[tuple[int, int, int], ...] = ()
    divergence: str = FORWARD
    until_stable: dict[str, Any] | None = None
    calibration: dict[str, Any] = field(default_factory=dict)
    base: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    __pydantic_config__ = STRICT | {"extra": "ignore"}  # a later release may add fields

    def __post_init__(self) -> None:
        per_layer = [self.visual, self.visual_standard_error, *self.visual_samples]
        per_layer += filter(None, [self.text, self.visual_cosine_distance])
        per_layer += [row for rows in self.ablations.values() for row in rows]
        if not self.visual or {*map(len, per_layer)} != {len(self.visual)}:
            raise ShortVError("scores must hold one value of each kind per layer.")
        if any(len(rows) != self.num_samples for rows in self.ablations.values()):
            raise ShortVError("scores must hold the ablations of all samples ('num_samples').")
        if self.ablations and not self.visual_samples:
            raise ShortVError("scores with ablations must hold the values of all samples.")
        for positions in ("", "answer_"):
            if len(self.ablations.keys() & {f"{positions}attention", f"{positions}ffn"}) == 1:
                raise ShortVError("scores must hold the ablations of both operators, or of none.")
        if self.tokens and (len(self.tokens) != self.num_samples or min(map(min, self.tokens)) < 1):
            raise ShortVError("scores must hold three numbers of tokens, all positive, for each sample, or for none.")
        if len(self.visual_samples) not in (0, self.num_samples):
            raise ShortVError("scores must hold the values of all samples ('num_samples'), or of none.")
        if not all(
            isinstance(value, int | float) and math.isfinite(value) for values in per_layer for value in values
        ):
            raise ShortVError("scores must be finite numbers.")

    @property
    def positions(self) -> str | None:
        """Where single operators were judged: ``"answer"`` (then also ``"first"``), ``"first"``, or not at all."""
        return "answer" if "answer_ffn" in self.ablations else "first" if self.ablations else None

    def operators(self, positions: str) -> dict[str, tuple[tuple[float, ...], ...]]:
        """The divergences by which operators are chosen.

        Args:
            positions: ``"first"`` or ``"answer"``.

        Returns:
            ``"visual"`` (a frozen layer), ``"attention"`` and ``"ffn"``: ``(num_samples, layers)`` each.

        Raises:
            ShortVError: they were not measured there.
        """
        if positions == "first" and self.ablations:
            return {"visual": self.visual_samples, **{name: self.ablations[name] for name in ("attention", "ffn")}}
        if positions == "answer" and self.positions == "answer":
            return {name: self.ablations[f"answer_{name}"] for name in ("visual", "attention", "ffn")}  # type: ignore[index]
        raise ShortVError(
            "the scores hold no divergences of single operators; measure them again with `shortv-export score`"
            f"{' (`positions` answer)' if self.ablations else ''}."
        )

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
