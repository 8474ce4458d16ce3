"""Means over samples, with confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..records import Estimate
from ..selection import RESAMPLES, draws


def mean_interval(
    values: Sequence[float], *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float] | None:
    """The confidence interval of a mean: the percentile bootstrap over the samples.

    Args:
        values: one per sample.
        level: of confidence.
        resamples, seed: of the bootstrap. The same seed draws the same samples, as paired comparisons need.

    Returns:
        None for fewer than two samples.
    """
    if len(values) < 2:
        return None
    means = np.asarray(values, dtype=np.float64)[draws(len(values), resamples, seed)].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def estimate_of(values: Sequence[float]) -> Estimate:
    """The mean of values, one per sample, and its interval."""
    interval = mean_interval(values)
    return Estimate(sum(values) / len(values), *(interval or (None, None)))
