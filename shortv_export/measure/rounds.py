"""Scores a base on more and more samples, until the selection no longer changes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from ..records import Scores

if TYPE_CHECKING:
    from ..samples import DrawnSamples

logger = logging.getLogger(__name__)


def score_in_rounds(
    scorer: Callable[[DrawnSamples], Scores],
    draw: Callable[[int, bool], DrawnSamples],
    select: Callable[[Scores], tuple[int, ...]],
    first: int,
    most: int,
) -> Scores:
    """Scores in rounds, each with half as many samples more than the one before.

    Stops once the selection has stayed the same for two rounds, at the largest number of samples, or when the data has
    no more.

    Args:
        scorer: samples -> scores (see `Scorer`, which measures only the samples that are new).
        draw: number of samples, whether fewer may come -> samples.
        select: scores -> frozen layers.
        first: number of samples in the first round. The data must have that many.
        most: largest number of samples.

    Returns:
        The scores of the last round; their `until_stable` records the rounds.
    """
    rounds: list[int] = []
    selections: list[tuple[int, ...]] = []
    number = first
    while True:
        samples = draw(number, bool(rounds))
        found = len(samples.samples)
        if not rounds or found > rounds[-1]:
            scores = scorer(samples)
            rounds.append(found)
            selections.append(select(scores))
            changed = len({*selections[-1]} - {*selections[-2]}) if len(selections) > 1 else None
            news = "" if changed is None else f"; {changed} of {len(selections[-1])} selected layers are new"
            logger.info("round %d: %d samples%s", len(rounds), found, news)
        stable = len(selections) > 2 and len({*selections[-3:]}) == 1
        if stable or found < number or number >= most:
            verdict = "the selection is stable" if stable else "the selection is not stable"
            logger.info("%s after %d samples", verdict, rounds[-1])
            record = {"num_frozen": len(selections[-1]), "rounds": rounds, "stable": stable}
            return replace(scores, until_stable=record)
        number = min(most, number + max(1, number // 2))
