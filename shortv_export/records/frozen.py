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

    def skips_attention(self, layer: int) -> bool:
        return layer in self.layers or layer in self.attention

    def skips_ffn(self, layer: int) -> bool:
        return layer in self.layers or layer in self.ffn
