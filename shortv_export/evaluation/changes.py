"""The methods that are compared with the base, each a temporary change to the same loaded model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from ..base import TEXT_TOKENS, LayerShape, flops_ratio, model_flops
from ..errors import ShortVError
from ..options import Budget
from ..packaging import Package
from ..records import Frozen
from ..selection import ranking, select_layers, select_operators

Inputs = Mapping[str, Any]
"""Keyword arguments of a model's forward pass."""


@dataclass(frozen=True)
class Change:
    """A method that makes the base's prefill cheaper, such as ShortV, FastV or VTW.

    Attributes:
        name: shown in tables, such as ``"19 of 32"`` or ``"VTW K=16"``.
        apply: ``apply(model, inputs)`` returns a context. Inside it, the model runs these inputs with the method.
        frozen: what it freezes; None if the method does more than that.
        flops: ``flops(shapes, text_tokens, visual_tokens)`` returns the prefill FLOPs of the decoder layers, by the
            paper's cost model; None if that does not cover the method.
        baseline: whether the method is measured only to compare ShortV with.
    """

    name: str
    apply: Callable[[Any, Inputs], AbstractContextManager[Any]]
    frozen: Frozen | None = None
    flops: Callable[[Sequence[LayerShape], int, int], float] | None = None
    baseline: bool = False

    def flops_ratio(self, shapes: Sequence[LayerShape], text_tokens: int, visual_tokens: int) -> float | None:
        """The method's prefill FLOPs over the base's; None if the cost model does not cover it."""
        if self.flops is None:
            return None
        return self.flops(shapes, text_tokens, visual_tokens) / model_flops(shapes, (), text_tokens, visual_tokens)


UNCHANGED = Change("base", lambda model, inputs: nullcontext(), Frozen())


def shortv(frozen: Frozen, num_layers: int) -> Change:
    """ShortV that freezes this, for a model that is loaded with nothing frozen."""

    @contextmanager
    def apply(model: Any, inputs: Inputs) -> Iterator[None]:
        model.freeze_layers(**{name: list(layers) for name, layers in frozen.lists.items()})
        try:
            yield
        finally:
            model.freeze_layers([])

    def flops(shapes: Sequence[LayerShape], text_tokens: int, visual_tokens: int) -> float:
        return model_flops(shapes, **frozen.lists, text_tokens=text_tokens, visual_tokens=visual_tokens)

    single = {"attention": frozen.attention, "FFN": frozen.ffn}
    more = [f" + {len(layers)} {name}" for name, layers in single.items() if layers]
    return Change(f"{len(frozen.layers)} of {num_layers}{''.join(more)}", apply, frozen, flops)


def frozen_lists(package: Package, sweep: Sequence[int | float] | None) -> list[Frozen]:
    """What the package freezes, and for each number in `sweep` that many layers with the lowest scores.

    A number that is no integer is a FLOPs ratio: the fewest layers that reach it. For a package that freezes single
    operators, also the operators that are chosen at the FLOPs of these layers.

    Returns:
        Lists without duplicates, the shortest first.

    Raises:
        ShortVError: a number is out of range, or the package holds no scores for a sweep.
    """
    lists = {package.recipe.frozen}
    if sweep is not None:
        if package.scores is None:
            raise ShortVError(
                f"{package.name} holds no scores, which `sweep` chooses layers by; package the base with `scores`."
            )
        shapes, visual = package.base.layer_shapes, package.base.prompt_visual_tokens
        order = ranking(package.scores.visual)
        for number in sweep:
            if isinstance(number, float):
                layers = select_layers(package.scores, Budget(flops_ratio=number), shapes, visual).frozen.layers
            elif 0 <= number <= package.recipe.num_layers:
                layers = tuple(sorted(order[:number]))
            else:
                raise ShortVError(f"`sweep` has {number}; give numbers from 0 to {package.recipe.num_layers}.")
            lists.add(Frozen(layers))
            if layers and package.recipe.frozen.operators and package.scores.positions:
                budget = Budget(flops_ratio=flops_ratio(shapes, layers, TEXT_TOKENS, visual))
                lists.add(select_operators(package.scores, budget, shapes, visual).frozen)
    return sorted(lists, key=lambda frozen: (len(frozen.parts), *frozen.lists.values()))
