"""The selection that a choice and a budget mean for a base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..base import BaseModel
from ..errors import ShortVError
from ..options import Budget, Choice
from ..records import Scores, Selection
from .budgets import Measure, Prefill, check_budget, select_layers
from .presets import given_selection, preset_selection


def select(
    base: BaseModel,
    choice: Choice,
    budget: Budget,
    *,
    seed: int,
    measurement: Callable[[Scores | None], Measure] | None = None,
) -> tuple[Selection, Scores | None]:
    """The selection for a base, and the scores it rests on.

    Args:
        base: the base.
        choice: where the list comes from, and by which method.
        budget: how many layers; not for a preset or a given list.
        seed: of the random order and of held-out samples.
        measurement: scores -> what measures the divergence of frozen layers; called only for `max_kl`.

    Raises:
        ShortVError: not exactly one source, a budget for a fixed list, or a source or budget that does not fit the
            base.
    """
    if len(choice.sources) != 1:
        raise ShortVError(
            "say which layers to freeze with one of `scores`, `preset`, `frozen_layers` and `method` random."
        )
    if choice.scores is not None or choice.method == "random":
        scores = Scores.load(choice.scores) if choice.scores is not None else None
        measure = measurement(scores) if measurement is not None and budget.max_kl is not None else None
        return _select_by_method(base, scores, choice.method, budget, seed, measure), scores
    if budget != Budget() or choice.method != "lc":
        raise ShortVError(
            f"{choice.sources[0]} fixes the list; `num_frozen`, `flops_ratio`, `max_kl` and `method` go with `scores`."
        )
    if choice.frozen_layers is not None:
        return given_selection(choice.frozen_layers, base.num_layers), None
    if choice.preset != "paper":
        raise ShortVError(f"unknown `preset` {choice.preset!r}; there is one: paper.")
    return preset_selection(base), None


def foresee(base: BaseModel, choice: Choice, budget: Budget, *, seed: int) -> Selection | None:
    """The selection, if it is known without measuring; refuses now what `select` would refuse later.

    Returns:
        None if scores or a divergence have yet to be measured.

    Raises:
        ShortVError: as `select`.
    """
    check_budget(budget)
    # How many layers `max_kl` allows is not known yet; with any number, all the rest is checked.
    known = budget if budget.max_kl is None else Budget(num_frozen=1)
    if not choice.sources:
        zeros = (0.0,) * base.num_layers
        scores = Scores(zeros, zeros, zeros, 1, visual_cosine_distance=zeros)
        _select_by_method(base, scores, choice.method, known, seed)
        return None
    selection, _ = select(base, choice, known, seed=seed)
    return selection if budget.max_kl is None else None


def select_by_scores(base: BaseModel, scores: Scores, budget: Budget, seed: int) -> Selection:
    """The layers of a base with the lowest Layer Contributions, before any divergence is measured.

    `max_kl` needs such a measurement and is ignored.

    Raises:
        ShortVError: as `select_layers`.
    """
    return _select_by_method(base, scores, "lc", replace(budget, max_kl=None), seed)


def _select_by_method(
    base: BaseModel, scores: Scores | None, method: str, budget: Budget, seed: int, measure: Measure | None = None
) -> Selection:
    prefill = Prefill(base.layer_shapes, visual_tokens=base.prompt_visual_tokens)
    return select_layers(scores, budget, prefill, method=method, seed=seed, measure=measure)
