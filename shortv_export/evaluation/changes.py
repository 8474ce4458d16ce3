"""Changes to a base model, such as frozen layers: what an evaluation compares with the base."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from ..base import LayerShape, model_flops
from ..errors import ShortVError
from ..packaging import Package
from ..selection import ranking

Inputs = Mapping[str, Any]
"""What a model is called with."""


@dataclass(frozen=True)
class Change:
    """A temporary change to a base model.

    Attributes:
        name: for tables.
        apply: takes the model and the inputs that it will be called with. The model is changed inside the context
            that it returns.
        frozen_layers: layer numbers; None for a method that does more than freeze layers.
        flops: prefill FLOPs of the changed decoder layers by the cost model, from the layers' shapes, the number of
            text tokens and the number of visual tokens.
        baseline: whether it is another method, measured for comparison.
    """

    name: str
    apply: Callable[[Any, Inputs], AbstractContextManager[Any]]
    frozen_layers: tuple[int, ...] | None = None
    flops: Callable[[Sequence[LayerShape], int, int], float] | None = None
    baseline: bool = False

    def flops_ratio(self, shapes: Sequence[LayerShape], text_tokens: int, visual_tokens: int) -> float | None:
        """Its FLOPs over the base's; None if the cost model does not cover it."""
        if self.flops is None:
            return None
        return self.flops(shapes, text_tokens, visual_tokens) / model_flops(shapes, (), text_tokens, visual_tokens)


UNCHANGED = Change("base", lambda model, inputs: nullcontext(), ())


def frozen(layers: Sequence[int], num_layers: int) -> Change:
    """Freezes these decoder layers of a ShortV model that freezes none."""

    @contextmanager
    def apply(model: Any, inputs: Inputs) -> Iterator[None]:
        model.freeze_layers(list(layers))
        try:
            yield
        finally:
            model.freeze_layers([])

    def flops(shapes: Sequence[LayerShape], text_tokens: int, visual_tokens: int) -> float:
        return model_flops(shapes, layers, text_tokens, visual_tokens)

    return Change(f"{len(layers)} of {num_layers}", apply, tuple(sorted(layers)), flops)


def frozen_lists(package: Package, sweep: Sequence[int] | None) -> list[tuple[int, ...]]:
    """The package's own list, and for each number in a sweep that many layers with the lowest scores.

    Returns:
        By length, without repetition.

    Raises:
        ShortVError: a number is out of range, or a sweep over a package without scores.
    """
    lists = {package.recipe.frozen_layers}
    if sweep is not None:
        if package.scores is None:
            raise ShortVError(
                f"{package.name} holds no scores, which `sweep` chooses layers by; package the base with `scores`."
            )
        order = ranking(package.scores.visual)
        for count in sweep:
            if not 0 <= count <= package.recipe.num_layers:
                raise ShortVError(f"`sweep` has {count}; the model has {package.recipe.num_layers} layers.")
            lists.add(tuple(sorted(order[:count])))
    return sorted(lists, key=lambda layers: (len(layers), layers))
