"""What the visual tokens of a model skip."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Frozen:
    """The operators that visual tokens skip. All are sorted layer numbers; no layer is in two of the lists.

    Attributes:
        layers: both operators are skipped: the paper's frozen layers.
        attention: attention alone (query, attention, output projection) is skipped; keys and values are made.
        ffn: the FFN, or the experts, alone is skipped.
    """

    layers: tuple[int, ...] = ()
    attention: tuple[int, ...] = ()
    ffn: tuple[int, ...] = ()

    @classmethod
    def of_operators(cls, attention: Collection[int], ffn: Collection[int]) -> Frozen:
        """From the layers that skip attention and those that skip the FFN; a layer in both is a frozen layer."""
        both = {*attention} & {*ffn}
        return cls(*(tuple(sorted(layers)) for layers in (both, {*attention} - both, {*ffn} - both)))

    @property
    def parts(self) -> set[tuple[str, int]]:
        """Every operator that is frozen, as ``("attention", layer)`` or ``("ffn", layer)``."""
        single = {("attention", layer) for layer in self.attention} | {("ffn", layer) for layer in self.ffn}
        return single | {(operator, layer) for layer in self.layers for operator in ("attention", "ffn")}

    @property
    def operators(self) -> dict[str, tuple[int, ...]]:
        """The lists of single operators under their names in ``config.json``; without those that are empty."""
        return {name: found for name, found in self._single() if found}

    @property
    def lists(self) -> dict[str, tuple[int, ...]]:
        """All three lists under their names in ``config.json``, even if they are empty."""
        return {"frozen_layers": self.layers, **dict(self._single())}

    def describe(self, num_layers: int) -> str:
        """In words, such as ``"3 of 32 layers frozen, and attention alone in 2"``."""
        single = [
            f"{what} alone in {len(found)}"
            for what, found in (("attention", self.attention), ("FFN", self.ffn))
            if found
        ]
        return ", and ".join([f"{len(self.layers)} of {num_layers} layers frozen", *single])

    def _single(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        return ("frozen_attention", self.attention), ("frozen_ffn", self.ffn)
