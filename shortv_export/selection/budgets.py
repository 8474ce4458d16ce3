"""Orders the layers, and takes as many of the first ones as a budget allows."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..base import TEXT_TOKENS, VISUAL_TOKENS, LayerShape, flops_ratio
from ..errors import ShortVError
from ..options import Budget
from ..records import Frozen, Scores, Selection
from .operators import Measure, check_ratio, largest_within
from .stability import boundary, ranking

DEFAULT_FRACTION = 0.6
"""About what the paper freezes: 19 of 32 layers, 24 of 40."""

METHODS = ("lc", "cosine", "random")
"""How layers are ordered. The last two are for comparison (paper, Table 6)."""


def default_count(num_layers: int) -> int:
    """How many layers are frozen without a budget."""
    return max(1, round(DEFAULT_FRACTION * num_layers))


def select_layers(
    scores: Scores | None,
    budget: Budget = Budget(),
    shapes: Sequence[LayerShape] | None = None,
    visual_tokens: int = VISUAL_TOKENS,
    *,
    method: str = "lc",
    seed: int = 0,
    measure: Measure | None = None,
) -> Selection:
    """Selects the layers that a method puts first, as many as the budget allows.

    `max_kl` is found by bisection, since the divergence usually grows with the number of layers. The number found is
    within the bound and the next one is not. Where the divergence does not grow, a larger number may be within it too.

    Args:
        scores: of the base; not needed for ``"random"``.
        budget: how many layers. Without one, 60 % of the layers as in the paper.
        shapes: of the base's decoder layers, in order; needed for `flops_ratio` or without scores.
        visual_tokens: of the prompt whose FLOPs `flops_ratio` counts.
        method: ``"lc"``, the lowest visual Layer Contribution; ``"cosine"``, the lowest visual cosine distance; or
            ``"random"``.
        seed: of the random order, and of the samples of `measure`. The selection records it if either is used.
        measure: the divergence of layers frozen together; needed for `max_kl`.

    Raises:
        ShortVError: there are two budgets; the budget is out of range or out of reach; the method is unknown; or the
            scores are of another number of layers or lack what the method needs.
    """
    check_budget(budget)
    layers = len(shapes if shapes is not None else scores.visual if scores else ())
    if scores is not None and len(scores.visual) != layers:
        raise ShortVError(
            f"the scores are for {len(scores.visual)} layers, but the model has {layers}; "
            "measure this model's with `shortv-export score`."
        )
    order = _order(scores, method, seed, layers)
    recorded: dict[str, Any]
    evidence: dict[str, Any] = {}
    if budget.flops_ratio is not None:
        if shapes is None:
            raise ValueError("flops_ratio needs the shapes of the layers")
        count = _smallest_count(budget.flops_ratio, order, shapes, visual_tokens)
        recorded = {"flops_ratio": budget.flops_ratio, "text_tokens": TEXT_TOKENS, "visual_tokens": visual_tokens}
    elif budget.max_kl is not None:
        if measure is None:
            raise ValueError("max_kl needs a measurement")
        probe = measure
        count, evidence["probes"] = largest_within(
            budget.max_kl,
            len(order),
            lambda count: probe(Frozen(tuple(sorted(order[:count])))),
            "layer",
            f"layer {order[0]} alone",
        )
        recorded = {"max_kl": budget.max_kl}
    elif budget.num_frozen is not None:
        count = budget.num_frozen
        if type(count) is not int or not 1 <= count <= layers:
            raise ShortVError(f"cannot freeze {count} of {layers} layers; give a number from 1 to {layers}.")
        recorded = {"num_frozen": count}
    else:
        count = default_count(layers)
        recorded = {"fraction": DEFAULT_FRACTION}
    if method == "random" or budget.max_kl is not None:
        recorded["seed"] = seed
    if method == "lc" and scores is not None and (found := boundary(scores, count)):
        evidence["boundary"] = asdict(found)
    return Selection(tuple(sorted(order[:count])), layers, method, recorded, evidence=evidence)


def check_budget(budget: Budget) -> None:
    """Checks what can be checked without knowing the base.

    Raises:
        ShortVError: there are two budgets, or `max_kl` is negative or not finite.
    """
    if sum(value is not None for value in asdict(budget).values()) > 1:
        raise ShortVError("`num_frozen`, `flops_ratio` and `max_kl` are budgets; give one of them.")
    if budget.max_kl is not None and not 0 <= budget.max_kl < math.inf:
        raise ShortVError(f"`max_kl` is {budget.max_kl}; give a number of nats such as 0.05.")


def _order(scores: Scores | None, method: str, seed: int, num_layers: int) -> list[int]:
    """All layers, in the order in which a method freezes them."""
    if method not in METHODS:
        raise ShortVError(f"unknown `method` {method!r}; choose one of: {', '.join(METHODS)}.")
    if method == "random":
        return random.Random(seed).sample(range(num_layers), num_layers)
    if scores is None:
        raise ShortVError(f"`method` {method} needs scores; measure them with `shortv-export score`.")
    if method == "lc":
        return ranking(scores.visual)
    if not scores.visual_cosine_distance:
        raise ShortVError("the scores hold no cosine distances; measure them again with `shortv-export score`.")
    return ranking(scores.visual_cosine_distance)


def _smallest_count(ratio: float, order: Sequence[int], shapes: Sequence[LayerShape], visual_tokens: int) -> int:
    """The fewest layers, taken in order, that bring the FLOPs down to a share of the base's."""
    check_ratio(ratio, shapes, visual_tokens)
    counts = range(1, len(order) + 1)
    return next(count for count in counts if flops_ratio(shapes, order[:count], TEXT_TOKENS, visual_tokens) <= ratio)
