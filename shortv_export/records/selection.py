"""What is frozen in a package, and the reasons for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .frozen import Frozen


@dataclass(frozen=True)
class Selection:
    """Which layers and operators are frozen, and why.

    Attributes:
        frozen_layers: sorted numbers of the layers that freeze both operators.
        num_layers: number of decoder layers.
        method: ``"lc"`` (lowest Layer Contribution), ``"cosine"`` (lowest cosine distance), ``"random"``, ``"preset"``
            (the paper's Table 8) or ``"given"``.
        budget: the option that set the number of layers, such as ``{"num_frozen": 19}``; the seed of a random choice.
        source: the citation of a preset.
        evidence: measurements besides scores: ``"boundary"`` (a `selection.Boundary`), ``"probes"`` (a list of
            ``{"num_frozen", "kl", "standard_error"}``, measured for `max_kl`) and ``"held_out"`` (the samples of the
            probes; see `DrawnSamples.record`).
        frozen_attention, frozen_ffn: sorted numbers of the layers that freeze a single operator (see `Frozen`).
    """

    frozen_layers: tuple[int, ...]
    num_layers: int
    method: str
    budget: dict[str, Any] = field(default_factory=dict)
    source: str | None = None
    evidence: dict[str, Any] = field(default_factory=dict)
    frozen_attention: tuple[int, ...] = ()
    frozen_ffn: tuple[int, ...] = ()

    @property
    def frozen(self) -> Frozen:
        """The three lists."""
        return Frozen(self.frozen_layers, self.frozen_attention, self.frozen_ffn)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object in a recipe. Lists of single operators are left out if they are empty."""
        return {name: value for name, value in asdict(self).items() if value or name not in _SINGLE}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Selection:
        """From the JSON object in a recipe, which was validated when it was read."""
        return cls(**{**data, **{name: tuple(data[name]) for name in ("frozen_layers", *_SINGLE) if name in data}})


_SINGLE = ("frozen_attention", "frozen_ffn")
