"""Chooses single operators: attention or the FFN of a layer, those that cost least for the FLOPs they save.

The order is by the KL divergence of an operator's ablation (see `records.Scores.ablations`) per FLOP that its visual
tokens save, for the layer's own shape and the prompts that were measured.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..base import TEXT_TOKENS, LayerShape, dense_layer_flops, flops_ratio, operator_savings
from ..errors import ShortVError
from ..options import Budget
from ..records import Frozen, Scores, Selection
from .stability import RESAMPLES, draws

logger = logging.getLogger(__name__)

Measure = Callable[[Frozen], tuple[float, float]]
"""What is frozen -> KL(base || frozen) in nats, and its standard error (see `measure.JointDivergence`)."""

Numbers = npt.NDArray[np.float64]


def select_operators(
    scores: Scores,
    budget: Budget,
    shapes: Sequence[LayerShape],
    visual_tokens: int,
    *,
    seed: int = 0,
    measure: Measure | None = None,
) -> Selection:
    """Selects the operators with the lowest divergence per FLOP saved, as many as the budget takes or allows.

    For `flops_ratio`, what the last operator made superfluous is dropped again. For `max_kl`, the number is found by
    bisection, as in `select_layers`.

    Args:
        scores: of the base, with ablations; those over answers are used if there are any.
        budget: `flops_ratio` or `max_kl`.
        shapes: of the base's decoder layers, in order.
        visual_tokens: of the prompt whose FLOPs `flops_ratio` counts.
        seed: of the bootstrap, and of the samples of `measure`.
        measure: the divergence of operators frozen together; needed for `max_kl`.

    Raises:
        ShortVError: the scores have no ablations or are of another number of layers; the budget is out of reach.
    """
    if len(scores.visual) != len(shapes):
        raise ShortVError(
            f"the scores are for {len(scores.visual)} layers, but the model has {len(shapes)}; "
            "measure this model's with `shortv-export score`."
        )
    positions = scores.positions or "first"
    measured = scores.operators(positions)
    # Attention of all layers, then the FFN of all layers.
    divergences = np.concatenate([np.array(measured[name]) for name in ("attention", "ffn")], axis=1)
    tokens = np.array(scores.tokens or [(TEXT_TOKENS, visual_tokens, 1)]).mean(axis=0).round()
    saved = _savings(shapes, int(tokens[0]), int(tokens[1]))
    counted = _savings(shapes, TEXT_TOKENS, visual_tokens)
    dense = sum(dense_layer_flops(shape, TEXT_TOKENS, visual_tokens) for shape in shapes)
    evidence: dict[str, Any] = {"positions": positions}
    recorded: dict[str, Any]
    chosen: Sequence[int]
    order = _order(divergences.mean(axis=0), saved)
    if budget.flops_ratio is not None:
        ratio = budget.flops_ratio
        check_ratio(ratio, shapes, visual_tokens)

        def enough(saved_in_all: float) -> bool:
            return (dense - saved_in_all) / dense <= ratio  # exactly as `flops_ratio` divides

        chosen = _pruned(divergences.mean(axis=0), order, counted, enough)
        recorded = {"flops_ratio": ratio, "text_tokens": TEXT_TOKENS, "visual_tokens": visual_tokens, "seed": seed}
        if len(divergences) > 1:
            evidence["operators"] = _bootstrap(divergences, saved, counted, enough, seed)
    elif budget.max_kl is not None:
        if measure is None:
            raise ValueError("max_kl needs a measurement")
        probe = measure
        count, evidence["probes"] = largest_within(
            budget.max_kl,
            len(order),
            lambda count: probe(_frozen(order[:count], len(shapes))),
            "operator",
            "a single operator",
        )
        chosen = order[:count]
        recorded = {"max_kl": budget.max_kl, "seed": seed}
    else:
        raise ValueError("operators are selected for `flops_ratio` or `max_kl`")
    frozen = _frozen(chosen, len(shapes))
    return Selection(
        frozen.layers,
        len(shapes),
        "operators",
        recorded,
        evidence=evidence,
        frozen_attention=frozen.attention,
        frozen_ffn=frozen.ffn,
    )


def better_of(
    operators: Selection, layers: Selection, measure: Measure, ratio: Callable[[Frozen], float]
) -> Selection:
    """Single operators, unless whole layers, frozen together, clearly diverge less from the base; both are told.

    Clearly means by more than the standard error of the difference: a few samples with long answers decide a mean.

    Args:
        operators, layers: two selections that cost about the same.
        measure: the divergence of what is frozen together, on held-out samples.
        ratio: what is frozen -> its FLOPs ratio.
    """
    told = {}
    for name, selection in (("operators", operators), ("layers", layers)):
        divergence, error = measure(selection.frozen)
        told[name] = {"kl": divergence, "standard_error": error, "flops_ratio": ratio(selection.frozen)}
        logger.info(
            "%s: %s, FLOPs ratio %.3f: KL %.4g, standard error %.2g",
            name,
            selection.frozen.describe(selection.num_layers),
            told[name]["flops_ratio"],
            divergence,
            error,
        )
    by = told["operators"]["kl"] - told["layers"]["kl"]
    kept = layers if by > math.hypot(*(each["standard_error"] for each in told.values())) else operators
    return replace(kept, budget=operators.budget, evidence=operators.evidence | kept.evidence | {"joint": told})


def check_ratio(ratio: float, shapes: Sequence[LayerShape], visual_tokens: int) -> None:
    """Raises a ShortVError for a FLOPs ratio that is no share, or that nothing reaches."""
    if not 0 < ratio <= 1:
        raise ShortVError(f"`flops_ratio` is {ratio}; give a share of the base's FLOPs, above 0 and up to 1.")
    reached = flops_ratio(shapes, range(len(shapes)), TEXT_TOKENS, visual_tokens)
    if reached > ratio:
        # Rounded up, so that the ratio in the message can be reached.
        least = math.ceil(reached * 10_000) / 10_000
        raise ShortVError(
            f"`flops_ratio` {ratio} is out of reach: all {len(shapes)} layers frozen, or all their operators, give "
            f"{least:.4f}."
        )


def _savings(shapes: Sequence[LayerShape], text: int, visual: int) -> Numbers:
    """FLOPs that each operator saves: attention of all layers, then the FFN of all layers."""
    return np.array([operator_savings(shape, text, visual) for shape in shapes], dtype=float).T.reshape(-1)


def _order(divergence: Numbers, saved: Numbers) -> list[int]:
    """Numbers of the operators, the lowest divergence per FLOP first, without those that save nothing.

    Of equal ones, that of the higher layer comes first: it affects fewer layers.
    """
    layers = len(saved) // 2
    found = [number for number in range(len(saved)) if saved[number]]
    return sorted(found, key=lambda number: (divergence[number] / saved[number], -(number % layers), number))


def _pruned(divergence: Numbers, order: Sequence[int], saved: Numbers, enough: Callable[[float], bool]) -> list[int]:
    """The first operators that together save enough, without those that are superfluous."""
    total = 0.0
    chosen: list[int] = []
    for number in order:
        if chosen and enough(total):
            break
        chosen.append(number)
        total += saved[number]
    for number in sorted(chosen, key=lambda number: -divergence[number]):
        if len(chosen) > 1 and enough(total - saved[number]):
            chosen.remove(number)
            total -= saved[number]
    return chosen


def largest_within(
    max_kl: float, most: int, measure: Callable[[int], tuple[float, float]], what: str, first: str
) -> tuple[int, list[dict[str, float]]]:
    """The largest number whose divergence is within the bound, found by bisection; and every measurement made.

    Args:
        max_kl: the bound, in nats.
        most: the largest number there is.
        measure: number -> divergence of so many frozen together, and its standard error.
        what: is counted, such as ``"layer"``.
        first: what the first one is called, for the message when even it is beyond the bound.

    Raises:
        ShortVError: it is.
    """
    probes = []
    within, beyond = 0, most + 1
    while beyond - within > 1:
        count = (within + beyond) // 2
        divergence, error = measure(count)
        probes.append({"num_frozen": count, "kl": divergence, "standard_error": error})
        counted = f"1 {what}" if count == 1 else f"{count} {what}s"
        logger.info("%s frozen together: KL %.4g, standard error %.2g", counted, divergence, error)
        if divergence <= max_kl:
            within = count
        else:
            beyond = count
    if within == 0:
        raise ShortVError(f"`max_kl` {max_kl} is out of reach: {first} has a KL divergence of {probes[-1]['kl']:.4g}.")
    return within, probes


def _bootstrap(
    divergences: Numbers, saved: Numbers, counted: Numbers, enough: Callable[[float], bool], seed: int
) -> dict[str, Any]:
    """How often each operator is selected, with other samples drawn from the same ones."""
    times = np.zeros(len(saved))
    for rows in draws(len(divergences), RESAMPLES, seed):
        mean = divergences[rows].mean(axis=0)
        times[_pruned(mean, _order(mean, saved), counted, enough)] += 1
    attention, ffn = (times / RESAMPLES).reshape(2, -1).tolist()
    return {"resamples": RESAMPLES, "seed": seed, "attention_frequency": attention, "ffn_frequency": ffn}


def _frozen(chosen: Sequence[int], num_layers: int) -> Frozen:
    attention = {number for number in chosen if number < num_layers}
    return Frozen.of_operators(attention, {number - num_layers for number in {*chosen} - attention})
