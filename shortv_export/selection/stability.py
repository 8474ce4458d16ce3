"""Bootstraps a selection over its samples: would other samples have given the same layers?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..records import Frozen, Scores

RESAMPLES = 1000


@dataclass(frozen=True)
class Boundary:
    """How stable the boundary between frozen and other layers is under resampling.

    Attributes:
        num_frozen, num_samples: numbers of selected layers and of samples.
        resamples, seed: of the bootstrap.
        selection_frequency: for each layer, the share of resamples in which it is selected.
        inside, outside: the last selected layer in order of score, and the first one that is not selected.
        order_kept: the share of resamples in which `inside` ranks before `outside`.
    """

    num_frozen: int
    num_samples: int
    resamples: int
    seed: int
    selection_frequency: tuple[float, ...]
    inside: int
    outside: int
    order_kept: float


def boundary(scores: Scores, num_frozen: int, *, resamples: int = RESAMPLES, seed: int = 0) -> Boundary | None:
    """Bootstraps the selection of the `num_frozen` layers (at least 1) with the lowest visual Layer Contributions.

    Returns:
        None if fewer than two samples have values of their own, or if every layer is selected.
    """
    layers = len(scores.visual)
    if len(scores.visual_samples) < 2 or num_frozen >= layers:
        return None
    samples = np.array(scores.visual_samples)
    resampled = draws(len(samples), resamples, seed)
    # A mean for each resample sums every layer in the same order, so layers with equal values tie.
    means = np.stack([samples[rows].mean(axis=0) for rows in resampled])
    # As in `ranking`: of equal values, the higher layer first.
    orders = layers - 1 - np.argsort(means[:, ::-1], axis=1, kind="stable")
    ranks = np.argsort(orders, axis=1)
    order = ranking(scores.visual)
    inside, outside = order[num_frozen - 1], order[num_frozen]
    return Boundary(
        num_frozen=num_frozen,
        num_samples=len(samples),
        resamples=resamples,
        seed=seed,
        selection_frequency=tuple((ranks < num_frozen).mean(axis=0).tolist()),
        inside=inside,
        outside=outside,
        order_kept=float((ranks[:, inside] < ranks[:, outside]).mean()),
    )


def draws(samples: int, resamples: int, seed: int) -> npt.NDArray[np.int64]:
    """Draws sample numbers with replacement: ``(resamples, samples)``."""
    return np.random.default_rng(seed).integers(samples, size=(resamples, samples))


def ranking(values: tuple[float, ...]) -> list[int]:
    """Orders layers by their values, lowest first. Of equal values, the higher layer comes first: it affects fewer."""
    return sorted(range(len(values)), key=lambda layer: (values[layer], -layer))


def describe_operators(selection: Mapping[str, Any]) -> str | None:
    """How stable a recorded selection of operators is, in one line; None if nothing was resampled."""
    found = selection["evidence"].get("operators")
    if not found:
        return None
    frozen = Frozen(
        *(tuple(selection.get(name, ())) for name in ("frozen_layers", "frozen_attention", "frozen_ffn"))
    ).parts
    often = {part: found[f"{part[0]}_frequency"][part[1]] for part in frozen}
    operator, layer = least = min(frozen, key=lambda part: (often[part], part))
    steady = sum(share >= 0.9 for share in often.values())
    name = {"attention": "attention", "ffn": "the FFN"}[operator]
    return (
        f"stability: {steady} of {len(frozen)} operators are selected in at least 90% of bootstrap resamples; least "
        f"often {name} of layer {layer}, in {often[least]:.0%}"
    )


def describe(scores: Scores, num_frozen: int) -> str:
    """How stable a selection is, in one line, or why that is unknown."""
    if found := boundary(scores, num_frozen):
        return (
            f"stability: layer {found.inside} (frozen) ranks before layer {found.outside} (not frozen) in "
            f"{found.order_kept:.0%} of bootstrap resamples"
        )
    if num_frozen >= len(scores.visual):
        return "stability: every layer is frozen, so there is no boundary to test"
    if scores.num_samples == 1:
        return "stability: unknown from a single sample; score more with `num_samples`"
    return "stability: unknown, as the scores lack the values of each sample"
