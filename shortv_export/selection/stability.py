"""How much a selection depends on the samples that were drawn: a bootstrap over them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..records import Scores

RESAMPLES = 1000
"""How often the samples are drawn again."""


@dataclass(frozen=True)
class Boundary:
    """How stable the boundary between frozen and other layers is under resampling.

    Attributes:
        num_frozen: number of selected layers.
        num_samples: number of samples.
        resamples, seed: of the bootstrap.
        selection_frequency: for each layer, the share of resamples in which it is selected.
        inside, outside: the last layer that is selected, and the first one that is not.
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
    """Bootstraps the selection of the layers with the lowest visual Layer Contributions.

    Args:
        scores: with the values of each sample.
        num_frozen: number of selected layers; at least 1.
        resamples: how often the samples are drawn again, with replacement.
        seed: of the draws.

    Returns:
        None if there are fewer than two samples with values, or if every layer is selected.
    """
    layers = len(scores.visual)
    if len(scores.visual_samples) < 2 or num_frozen >= layers:
        return None
    samples = np.array(scores.visual_samples)
    resampled = draws(len(samples), resamples, seed)
    # One mean per resample: layers with equal values then have equal means, and ties stay ties.
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
    """Sample numbers, drawn with replacement: ``(resamples, samples)``."""
    return np.random.default_rng(seed).integers(samples, size=(resamples, samples))


def ranking(values: tuple[float, ...]) -> list[int]:
    """Layer numbers by their values, lowest first.

    Of equal values, the higher layer comes first: fewer layers follow it and are affected.
    """
    return sorted(range(len(values)), key=lambda layer: (values[layer], -layer))


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
