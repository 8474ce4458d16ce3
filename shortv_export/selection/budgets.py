"""The layers with the lowest scores, as many as a budget allows."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from ..base import LayerShape
from ..base import flops_ratio as ratio_of
from ..errors import ShortVError
from ..records import Scores, Selection
from .stability import boundary, ranking

# fmt: on

# About what the paper freezes: 19 of 32 layers, 24 of 40.
DEFAULT_FRACTION = 0.6


METHODS = ("lc", "cosine", "random")
"""Which layers come first; the last two are for comparison (paper, Table 6)."""

Measure = Callable[[Sequence[int]], tuple[float, float]]
"""Frozen layers -> KL(base || frozen) in nats, and its standard error (see `joint.JointDivergence`)."""


def default_count(num_layers: int) -> int:
    """How many layers are frozen where no budget is given."""
    return max(1, round(DEFAULT_FRACTION * num_layers))


def select_layers(
    scores: Scores | None,
    *,
    method: str = "lc",
    seed: int = 0,
    num_frozen: int | None = None,
    flops_ratio: float | None = None,
    max_kl: float | None = None,
    measure: Measure | None = None,
    num_layers: int | None = None,
    shapes: Sequence[LayerShape] | None = None,
    text_tokens: int = 64,
    visual_tokens: int = 576,
    report: Callable[[str], None] = lambda line: None,
) -> Selection:
    """The layers that a method puts first, as many as the budget says.

    Args:
        scores: of the base; not needed for ``"random"``.
        method: ``"lc"``, the lowest visual Layer Contribution; ``"cosine"``, the visual hidden states that change
            direction least; or ``"random"``.
        seed: of the random order, and of whatever `measure` draws; recorded where there is either.
        num_frozen: how many layers. Without any budget, 60 % of the layers as in the paper.
        flops_ratio: instead, as few layers as bring the prefill FLOPs to this share of the base's, in (0, 1].
        max_kl: instead, as many layers as keep the measured divergence, all of them frozen together, at or below
            this many nats. Found by bisection, as the divergence grows with the number of layers; where it does not,
            the result keeps the bound and one layer more breaks it, but a larger number might keep it again.
        measure: needed for `max_kl`.
        num_layers: of the base, to check the scores against; needed without scores.
        shapes: of the base's decoder layers; needed for `flops_ratio`.
        text_tokens, visual_tokens: the prompt that `flops_ratio` is meant for; the defaults are the paper's.
        report: called with a line for each measurement.

    Raises:
        ShortVError: two budgets, one out of range or out of reach, an unknown method, or scores that are for another
            number of layers or lack what the method needs.
    """
    if scores is not None and num_layers is not None:
        check_scores(scores, num_layers)
    order = _order(scores, method, seed, num_layers)
    layers = len(order)
    if sum(budget is not None for budget in (num_frozen, flops_ratio, max_kl)) > 1:
        raise ShortVError(
            "a number of frozen layers, a FLOPs ratio and a bound on the KL divergence are budgets; give one of them."
        )
    budget: dict[str, Any]
    evidence: dict[str, Any] = {}
    if flops_ratio is not None:
        if shapes is None:
            raise ValueError("flops_ratio needs the shapes of the layers")
        count = _smallest_count(flops_ratio, order, shapes, text_tokens, visual_tokens)
        budget = {"flops_ratio": flops_ratio, "text_tokens": text_tokens, "visual_tokens": visual_tokens}
    elif max_kl is not None:
        if measure is None:
            raise ValueError("max_kl needs a measurement")
        count, evidence["probes"] = _largest_count(max_kl, order, measure, report)
        budget = {"max_kl": max_kl}
    elif num_frozen is not None:
        if type(num_frozen) is not int or not 1 <= num_frozen <= layers:
            raise ShortVError(f"cannot freeze {num_frozen} of {layers} layers; give a number from 1 to {layers}.")
        count = num_frozen
        budget = {"num_frozen": num_frozen}
    else:
        count = default_count(layers)
        budget = {"fraction": DEFAULT_FRACTION}
    if method == "random" or max_kl is not None:
        budget["seed"] = seed
    if method == "lc" and scores is not None and (found := boundary(scores, count)):
        evidence["boundary"] = asdict(found)
    return Selection(tuple(sorted(order[:count])), layers, method, budget, evidence=evidence)


def check_max_kl(max_kl: float) -> None:
    """Refuses a bound on the divergence that is none, before anything is measured.

    Raises:
        ShortVError: it is negative or not finite.
    """
    if not 0 <= max_kl < math.inf:
        raise ShortVError(f"the bound on the KL divergence is {max_kl}; give a number of nats such as 0.05.")


def _order(scores: Scores | None, method: str, seed: int, num_layers: int | None) -> list[int]:
    """All layers, in the order in which a method freezes them."""
    if method not in METHODS:
        raise ShortVError(f"unknown method {method!r}; choose one of: {', '.join(METHODS)}.")
    if method == "random":
        layers = len(scores.visual) if num_layers is None and scores else num_layers or 0
        return random.Random(seed).sample(range(layers), layers)
    if scores is None:
        raise ShortVError(f"the method {method} needs scores; measure them with `shortv-export score`.")
    if method == "lc":
        return ranking(scores.visual)
    if not scores.visual_cosine_distance:
        raise ShortVError("the scores hold no cosine distances; measure them again with `shortv-export score`.")
    return ranking(scores.visual_cosine_distance)


def _largest_count(
    max_kl: float, order: list[int], measure: Measure, report: Callable[[str], None]
) -> tuple[int, list[dict[str, float]]]:
    """The most layers, frozen together, whose divergence is within the bound; and what was measured on the way."""
    check_max_kl(max_kl)
    probes = []
    within, beyond = 0, len(order) + 1
    while beyond - within > 1:
        count = (within + beyond) // 2
        divergence, error = measure(sorted(order[:count]))
        probes.append({"num_frozen": count, "kl": divergence, "standard_error": error})
        report(f"{count} frozen together: KL {divergence:.4g}, standard error {error:.2g}")
        if divergence <= max_kl:
            within = count
        else:
            beyond = count
    if within == 0:
        raise ShortVError(
            f"a KL divergence of {max_kl} is out of reach: layer {order[0]} alone has {probes[-1]['kl']:.4g}."
        )
    return within, probes


def check_scores(scores: Scores, num_layers: int) -> None:
    """Refuses scores that were measured on a model with another number of layers.

    Raises:
        ShortVError: they were.
    """
    if len(scores.visual) != num_layers:
        raise ShortVError(
            f"the scores are for {len(scores.visual)} layers, but the model has {num_layers}; "
            "measure this model's with `shortv-export score`."
        )


def _smallest_count(
    ratio: float, order: Sequence[int], shapes: Sequence[LayerShape], text_tokens: int, visual_tokens: int
) -> int:
    """How many layers, the first ones of an order, reach a FLOPs ratio: the fewest."""
    if not 0 < ratio <= 1:
        raise ShortVError(f"the FLOPs ratio is {ratio}; give a share of the base's FLOPs, above 0 and up to 1.")
    for count in range(1, len(order) + 1):
        reached = ratio_of(shapes, order[:count], text_tokens, visual_tokens)
        if reached <= ratio:
            return count
    # Rounded up, so that asking for the number shown is answered.
    least = math.ceil(reached * 10_000) / 10_000
    raise ShortVError(f"a FLOPs ratio of {ratio} is out of reach: all {len(order)} layers frozen give {least:.4f}.")
