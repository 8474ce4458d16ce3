"""The first layers of an order, as many as a budget allows."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..base import LayerShape, flops_ratio
from ..errors import ShortVError
from ..options import Budget
from ..records import Scores, Selection
from .stability import boundary, ranking

logger = logging.getLogger(__name__)

DEFAULT_FRACTION = 0.6
"""About what the paper freezes: 19 of 32 layers, 24 of 40."""

METHODS = ("lc", "cosine", "random")
"""How layers are ordered; the last two are for comparison (paper, Table 6)."""

Measure = Callable[[Sequence[int]], tuple[float, float]]
"""Frozen layers -> KL(base || frozen) in nats, and its standard error (see `measure.JointDivergence`)."""


@dataclass(frozen=True)
class Prefill:
    """What `flops_ratio` counts the FLOPs of: a base's decoder layers on a prompt.

    Attributes:
        shapes: of every decoder layer, in order.
        text_tokens, visual_tokens: of the prompt; the defaults are the paper's.
    """

    shapes: Sequence[LayerShape]
    text_tokens: int = 64
    visual_tokens: int = 576


def default_count(num_layers: int) -> int:
    """How many layers are frozen without a budget."""
    return max(1, round(DEFAULT_FRACTION * num_layers))


def select_layers(
    scores: Scores | None,
    budget: Budget = Budget(),
    prefill: Prefill | None = None,
    *,
    method: str = "lc",
    seed: int = 0,
    measure: Measure | None = None,
) -> Selection:
    """The layers that a method puts first, as many as the budget allows.

    `max_kl` is found by bisection, since the divergence usually grows with the number of layers. Where it does not,
    the result keeps the bound and one layer more breaks it, but a larger number might keep it again.

    Args:
        scores: of the base; not needed for ``"random"``.
        budget: how many layers. Without one, 60 % of the layers as in the paper.
        prefill: of the base; needed for `flops_ratio` or without scores.
        method: ``"lc"``, the lowest visual Layer Contribution; ``"cosine"``, the lowest visual cosine distance; or
            ``"random"``.
        seed: of the random order, and of the samples of `measure`. It is recorded where there is either.
        measure: the divergence of layers frozen together; needed for `max_kl`.

    Raises:
        ShortVError: two budgets, one out of range or out of reach, an unknown method, or scores that are for another
            number of layers or lack what the method needs.
    """
    check_budget(budget)
    if scores is not None and prefill is not None:
        check_scores(scores, len(prefill.shapes))
    order = _order(scores, method, seed, prefill)
    layers = len(order)
    recorded: dict[str, Any]
    evidence: dict[str, Any] = {}
    if budget.flops_ratio is not None:
        if prefill is None:
            raise ValueError("flops_ratio needs the shapes of the layers")
        count = _smallest_count(budget.flops_ratio, order, prefill)
        tokens = {"text_tokens": prefill.text_tokens, "visual_tokens": prefill.visual_tokens}
        recorded = {"flops_ratio": budget.flops_ratio, **tokens}
    elif budget.max_kl is not None:
        if measure is None:
            raise ValueError("max_kl needs a measurement")
        count, evidence["probes"] = _largest_count(budget.max_kl, order, measure)
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
        ShortVError: there are two budgets, or the bound on the divergence is negative or not finite.
    """
    if sum(value is not None for value in asdict(budget).values()) > 1:
        raise ShortVError("`num_frozen`, `flops_ratio` and `max_kl` are budgets; give one of them.")
    if budget.max_kl is not None and not 0 <= budget.max_kl < math.inf:
        raise ShortVError(f"`max_kl` is {budget.max_kl}; give a number of nats such as 0.05.")


def check_scores(scores: Scores, num_layers: int) -> None:
    """Checks that scores are for a model with this number of layers.

    Raises:
        ShortVError: they are not.
    """
    if len(scores.visual) != num_layers:
        raise ShortVError(
            f"the scores are for {len(scores.visual)} layers, but the model has {num_layers}; "
            "measure this model's with `shortv-export score`."
        )


def _order(scores: Scores | None, method: str, seed: int, prefill: Prefill | None) -> list[int]:
    """All layers, in the order in which a method freezes them."""
    if method not in METHODS:
        raise ShortVError(f"unknown `method` {method!r}; choose one of: {', '.join(METHODS)}.")
    if method == "random":
        layers = len(prefill.shapes if prefill else scores.visual if scores else ())
        return random.Random(seed).sample(range(layers), layers)
    if scores is None:
        raise ShortVError(f"`method` {method} needs scores; measure them with `shortv-export score`.")
    if method == "lc":
        return ranking(scores.visual)
    if not scores.visual_cosine_distance:
        raise ShortVError("the scores hold no cosine distances; measure them again with `shortv-export score`.")
    return ranking(scores.visual_cosine_distance)


def _largest_count(max_kl: float, order: Sequence[int], measure: Measure) -> tuple[int, list[dict[str, float]]]:
    """The most layers that, frozen together, keep the divergence within the bound; and every measurement made."""
    probes = []
    within, beyond = 0, len(order) + 1
    while beyond - within > 1:
        count = (within + beyond) // 2
        divergence, error = measure(sorted(order[:count]))
        probes.append({"num_frozen": count, "kl": divergence, "standard_error": error})
        layers = "1 layer" if count == 1 else f"{count} layers"
        logger.info("%s frozen together: KL %.4g, standard error %.2g", layers, divergence, error)
        if divergence <= max_kl:
            within = count
        else:
            beyond = count
    if within == 0:
        raise ShortVError(
            f"`max_kl` {max_kl} is out of reach: layer {order[0]} alone has a KL divergence of {probes[-1]['kl']:.4g}."
        )
    return within, probes


def _smallest_count(ratio: float, order: Sequence[int], prefill: Prefill) -> int:
    """The fewest layers, the first ones of an order, that bring the FLOPs down to a ratio."""
    if not 0 < ratio <= 1:
        raise ShortVError(f"`flops_ratio` is {ratio}; give a share of the base's FLOPs, above 0 and up to 1.")
    for count in range(1, len(order) + 1):
        reached = flops_ratio(prefill.shapes, order[:count], prefill.text_tokens, prefill.visual_tokens)
        if reached <= ratio:
            return count
    # Rounded up, so that the ratio in the message can be reached.
    least = math.ceil(reached * 10_000) / 10_000
    raise ShortVError(f"`flops_ratio` {ratio} is out of reach: all {len(order)} layers frozen give {least:.4f}.")
