"""How stable a selection is: a bootstrap over the samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..records import Scores

RESAMPLES = 1000


@dataclass(frozen=True)
class Boundary:
    """What other samples of the same kind would have changed, by resampling those that there are.

    Attributes:
        num_frozen: how many layers the selection has.
        num_samples: how many samples there are.
        resamples, seed: of the bootstrap.
        selection_frequency: for each layer, the share of resamples in which it is selected.
        inside, outside: the last layer that is selected, and the first that is not.
        order_kept: the share of resamples in which `inside` still comes before `outside`.
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
    """The bootstrap of the selection of the `num_frozen` layers with the lowest visual Layer Contribution.

    Args:
        scores: with the values of each sample.
        num_frozen: how many layers; at least 1.
        resamples: how many times as many samples as there are get drawn, with replacement.
        seed: of the draws.

    Returns:
        None where nothing can be said: fewer than two samples with their values, or no layer left over.
    """
    layers = len(scores.visual)
    if len(scores.visual_samples) < 2 or num_frozen >= layers:
        return None
    samples = np.array(scores.visual_samples)
    resampled = draws(len(samples), resamples, seed)
    # Row by row, which adds equal columns in the same order, so that ties stay ties.
    means = np.stack([samples[rows].mean(axis=0) for rows in resampled])
    # As `ranking` does for the scores: of equal values the higher layer first.
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
    """Numbers of samples, drawn with replacement: ``(resamples, samples)``."""
    return np.random.default_rng(seed).integers(samples, size=(resamples, samples))


def ranking(values: tuple[float, ...]) -> list[int]:
    """Layer numbers, the lowest value first.

    Of equal values the higher layer comes first: fewer layers read what it leaves out.
    """
    return sorted(range(len(values)), key=lambda layer: (values[layer], -layer))


def describe(scores: Scores, num_frozen: int) -> str:
    """The boundary in one line for people, or why there is none."""
    if found := boundary(scores, num_frozen):
        return (
            f"boundary: layer {found.inside} (in) and {found.outside} (out) keep their order in "
            f"{found.order_kept:.0%} of resamples"
        )
    if num_frozen >= len(scores.visual):
        return "boundary: there is none, as every layer is frozen"
    if scores.num_samples == 1:
        return "boundary: nothing can be said from a single sample; score more with --num-samples"
    return "boundary: nothing can be said, as the scores lack the values of each sample"
